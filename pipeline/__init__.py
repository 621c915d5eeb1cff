"""From a picture and a prompt to a video, in plain PyTorch; knows nothing of engines or of ComfyUI."""
