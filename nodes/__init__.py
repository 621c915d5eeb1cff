"""ComfyUI's face: one thin file a node; `host` alone touches ComfyUI's internals."""
