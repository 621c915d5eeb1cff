"""I2V Benchmark."""

from __future__ import annotations

from comfy_api.latest import io

from ..pipeline.conditioning import MAX_FRAMES, check_fields
from ..pipeline.denoising.schedulers import MAX_STEPS
from ..runtime.engines.engine_set import EngineSet
from ..runtime.tools.benchmark import CHOICES, MAX_MINUTES, MIN_MINUTES, QUICK, BenchmarkOrder, run_benchmark
from .host import folders, memory, ui
from .inputs import CATEGORY, Model, sockets
from .limits import side_input


class Benchmark(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return ui.schema(
            node_id="I2VTRT_Benchmark",
            display_name="I2V Benchmark",
            category=CATEGORY,
            description="Makes one small clip in each way that this machine has, and says how long each takes. The "
            "first is diffusers in fp32; how like it the others' results are is told too.",
            search_aliases=["speed test", "measure", "fps", "compare backends", "ladder", "how fast"],
            inputs=[
                Model.Input("model", tooltip="From the I2V Model Loader."),
                io.Combo.Input(
                    "rows",
                    options=list(CHOICES),
                    default=QUICK,
                    tooltip="quick: diffusers, eager PyTorch and what auto takes. backends: every backend that can "
                    "run. everything: torch.compile too, which takes minutes. presets: those of I2V Accelerate "
                    "against exact clips of 25 steps or more.",
                ),
                side_input("width", 128),
                side_input("height", 128),
                io.Int.Input("num_frames", default=8, min=1, max=MAX_FRAMES, tooltip="Frames in a clip."),
                io.Int.Input("steps", default=4, min=1, max=MAX_STEPS, tooltip="Steps of the sampler."),
                io.Int.Input(
                    "minutes",
                    default=5,
                    min=MIN_MINUTES,
                    max=MAX_MINUTES,
                    tooltip="How long it may take; rows that no longer fit are left out, with why.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="plot", tooltip="Seconds for a clip by row and stage."),
                io.String.Output(display_name="report", tooltip="Every figure, as Markdown tables."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    @sockets(model=EngineSet)
    def execute(
        cls, model: EngineSet, rows: str, width: int, height: int, num_frames: int, steps: int, minutes: int
    ) -> io.NodeOutput:
        progress = ui.Progress(cls.hidden.unique_id, 100)

        def report(stage: str, done: float) -> None:
            progress.step(round(100 * done), 100)
            progress.say(stage)

        with ui.sentences():
            check_fields({"width": width, "height": height, "num_frames": num_frames})
            order = BenchmarkOrder(model.model.checkpoint.folder, rows, width, height, num_frames, steps, minutes)
            memory.free_models()
            model.unload()
            with folders.scratch_folder("i2v_benchmark") as work:
                found = run_benchmark(order, memory.device(), work, report)
        progress.say(found.line)
        return io.NodeOutput(found.plot, found.markdown, ui=ui.table_ui(found.table, [found.line]))
