"""ComfyUI's face: one thin file a node; `host` and its two beside it alone touch ComfyUI's internals."""
