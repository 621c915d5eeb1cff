"""A folder of pictures over many workers, each with a ComfyUI of its own: every clip once, whatever is lost."""
