"""The network of a ComfyUI MODEL on engines."""
