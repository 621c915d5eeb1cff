"""The client of a ComfyUI server, and a server of one's own."""
