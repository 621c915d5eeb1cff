"""I2V Compare Videos."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..runtime.tools.compare import compare_clips
from .host import ui
from .inputs import CATEGORY, sockets


class CompareVideos(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return ui.schema(
            node_id="I2VTRT_CompareVideos",
            display_name="I2V Compare Videos",
            category=CATEGORY,
            description="Lays two clips side by side, shows where they differ, and measures by how much. PSNR, SSIM, "
            "the greatest difference, and the flicker of each.",
            search_aliases=["psnr", "ssim", "difference", "side by side", "heat map", "flicker", "quality"],
            inputs=[
                io.Image.Input("frames_a", tooltip="One image a frame."),
                io.Image.Input("frames_b", tooltip="As many frames, of the same size."),
                io.String.Input(
                    "label_a",
                    default="A",
                    optional=True,
                    tooltip="Written above the clip, in Latin letters; without labels there is no strip for them.",
                ),
                io.String.Input(
                    "label_b",
                    default="B",
                    optional=True,
                    tooltip="Written above the clip, in Latin letters; without labels there is no strip for them.",
                ),
                io.Float.Input(
                    "brightest",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    optional=True,
                    tooltip="The difference that the heat map shows brightest; 0 takes the greatest that there is.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="side_by_side", tooltip="Both clips in one, for any Save Video."),
                io.Image.Output(display_name="difference", tooltip="Black where equal, pale yellow where most apart."),
                io.String.Output(display_name="report", tooltip="The table on the node, as Markdown."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    @sockets(frames_a=torch.Tensor, frames_b=torch.Tensor)
    def execute(
        cls,
        frames_a: torch.Tensor,
        frames_b: torch.Tensor,
        label_a: str = "A",
        label_b: str = "B",
        brightest: float = 0.0,
    ) -> io.NodeOutput:
        progress = ui.Progress(cls.hidden.unique_id, len(frames_a))
        with ui.sentences():
            found = compare_clips(frames_a, frames_b, (label_a, label_b), brightest, progress.step)
        progress.say(found.line)
        shown = ui.table_ui(found.table, [found.line])
        return io.NodeOutput(found.both, found.difference, found.table.markdown(), ui=shown)
