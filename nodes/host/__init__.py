"""The only modules that touch ComfyUI's internals; this file imports none of them."""
