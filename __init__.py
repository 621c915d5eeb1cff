"""I2V TensorRT: a picture and a prompt become a video in ComfyUI.

Nothing is imported here before ComfyUI asks for the nodes, so that the pack always loads.
"""

# Served as /extensions/FOLDER: the page looks for a node's help below the name of the pack's folder, which
# the `web` entry of pyproject.toml would not be.
WEB_DIRECTORY = "./web"


async def comfy_entrypoint():  # noqa: ANN201 - ComfyUI's type would need its import
    """ComfyUI's V3 entry point: returns the extension that lists the pack's nodes."""
    from .nodes.extension import I2VExtension

    return I2VExtension()
