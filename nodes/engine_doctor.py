"""I2V Engine Doctor."""

from __future__ import annotations

import time
from typing import Any

from comfy_api.latest import io

from ..runtime.tools.doctor import diagnose
from .host import memory, ui
from .host.idle import idle_builds
from .inputs import CATEGORY, sockets


class EngineDoctor(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return ui.schema(
            node_id="I2VTRT_EngineDoctor",
            display_name="I2V Engine Doctor",
            category=CATEGORY,
            description="Says what this machine can run, which backend auto takes and why, and the line that installs "
            "a faster one.",
            search_aliases=["tensorrt", "diagnose", "which backend", "system info", "what to install"],
            inputs=[],
            outputs=[
                io.String.Output(display_name="report", tooltip="The table on the node, as Markdown."),
                io.String.Output(display_name="install", tooltip="The line to run; empty if nothing is faster here."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls) -> Any:
        """A new value at every run: installed packages may have changed."""
        return str(time.time_ns())

    @classmethod
    @sockets()
    def execute(cls) -> io.NodeOutput:
        with ui.sentences():
            found = diagnose(memory.device(), idle_builds().line)
        ui.say(cls.hidden.unique_id, found.line)
        return io.NodeOutput(found.table.markdown(), found.install, ui=ui.table_ui(found.table, [found.line]))
