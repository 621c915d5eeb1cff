"""The square pictures of the workflows, which ComfyUI's page shows in its list of templates."""
