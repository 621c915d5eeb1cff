"""I2V Engine Manager."""

from __future__ import annotations

import time
from typing import Any

from comfy_api.latest import io

from ..runtime.tools.engine_list import check_start
from ..runtime.tools.engine_manager import ACTIONS, LIST, manage
from .host import folders, memory, ui
from .inputs import CATEGORY, sockets, verdict


class EngineManager(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return ui.schema(
            node_id="I2VTRT_EngineManager",
            display_name="I2V Engine Manager",
            category=CATEGORY,
            description="Lists the engines in models/i2v_engines, checks them, or removes one or those of no use here.",
            search_aliases=["list engines", "delete engine", "verify engine", "tensorrt", "free disk space"],
            inputs=[
                io.Combo.Input(
                    "action",
                    options=list(ACTIONS),
                    default=LIST,
                    tooltip="list and verify change nothing. delete removes the one engine named below, delete stale "
                    "those that other versions built for this device.",
                ),
                io.String.Input(
                    "engine",
                    default="",
                    tooltip="The first digits of a key, as the table shows it; at least 8 to delete. Empty lists or "
                    "verifies all.",
                ),
                io.AnyType.Input(
                    "after",
                    optional=True,
                    tooltip="Whatever is to be done first, such as the report of an Engine Builder.",
                ),
            ],
            outputs=[io.String.Output(display_name="report", tooltip="The table on the node, as Markdown.")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, engine: Any = None) -> bool | str:
        return True if engine is None else verdict(lambda: check_start(str(engine)))

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> Any:
        """Another at every run: the store may have changed."""
        return str(time.time_ns())

    @classmethod
    @sockets()
    def execute(cls, action: str, engine: str, after: Any = None) -> io.NodeOutput:
        progress = ui.Progress(cls.hidden.unique_id, 1)
        with ui.sentences():
            done = manage(action, engine, folders.engine_store(), memory.device(), progress.step)
        progress.step(1, 1)
        progress.say(done.line)
        report = f"{done.line}\n\n{done.table.markdown()}"
        return io.NodeOutput(report, ui=ui.table_ui(done.table, [done.line]))
