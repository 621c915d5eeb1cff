"""The list of nodes that ComfyUI asks for."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from ..common.vector_math import settle_vector_math
from .accelerate import Accelerate
from .benchmark import Benchmark
from .compare_videos import CompareVideos
from .compile_model import CompileModel
from .compile_upscale_model import CompileUpscaleModel
from .conditioning import I2VConditioning
from .engine_builder import EngineBuilder
from .engine_doctor import EngineDoctor
from .engine_loader import EngineLoader
from .engine_manager import EngineManager
from .host import folders
from .interpolate_frames import InterpolateFrames
from .lora import LoRA
from .model_loader import ModelLoader
from .onnx_picture import OnnxPicture
from .sampler import DDIMSampler
from .save_video import SaveVideo
from .upscale_video import UpscaleVideo
from .vae_decode import VAEDecode


class I2VExtension(ComfyExtension):
    """The pack's nodes, in the order of a graph, then the tools."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        settle_vector_math()
        folders.warn_of_another_copy("I2VTRT_ModelLoader")
        folders.register_folders()
        folders.keep_digests()
        folders.provide_pictures()
        tools = [CompileModel, CompileUpscaleModel, EngineDoctor, EngineManager, CompareVideos, Benchmark]
        models = [ModelLoader, LoRA, EngineBuilder, EngineLoader, Accelerate]
        frames = [InterpolateFrames, UpscaleVideo, OnnxPicture]
        return [*models, I2VConditioning, DDIMSampler, VAEDecode, *frames, SaveVideo, *tools]
