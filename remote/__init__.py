"""A live ComfyUI from outside, without PyTorch."""
