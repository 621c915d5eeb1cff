"""What touches ComfyUI's internals, and nothing else does; nothing is imported here."""
