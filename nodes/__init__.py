"""ComfyUI's face: one thin file a node; the `host` files alone touch ComfyUI's internals."""
