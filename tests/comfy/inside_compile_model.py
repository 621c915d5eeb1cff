"""I2V Compile Model over weights that ComfyUI brings in as they are used, as it does on a GPU."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import comfy.memory_management
import comfy.model_management as memory
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.utils
import comfy_aimdo.host_buffer
import torch
from comfy.ldm.wan.model import WanModel
from safetensors.torch import load_file

from i2v_tensorrt.nodes import host_model
from i2v_tensorrt.tests.comfy.core_models import WAN, WANS, filled, write

CARD = torch.device("cuda", 0)


def checkpoint(folder: Path) -> str:
    """A tiny Wan in fp32."""
    layers: dict[str, Any] = {"device": "cpu", "operations": comfy.ops.disable_weight_init, "dtype": torch.float32}
    write(filled(WanModel(**WAN, **WANS["tiny_wan22_a14b"], **layers)), folder, "diffusion_models", "wan")
    return str(folder / "diffusion_models" / "wan.safetensors")


@contextmanager
def half_precision() -> Iterator[None]:
    """A device on which ComfyUI computes in fp16."""
    with patch.object(memory, "should_use_fp16", lambda *_, **__: True):
        yield


@contextmanager
def dynamic() -> Iterator[None]:
    """ComfyUI's dynamic VRAM as far as it goes without its library: nothing is ever brought to the card."""
    changes: list[tuple[Any, str, Any]] = [
        (comfy.memory_management, "aimdo_enabled", True),
        (comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcherDynamic),
        (comfy.utils, "load_safetensors", lambda path: (load_file(path), {})),
        (comfy_aimdo.host_buffer, "HostBuffer", lambda *_: None),
        (memory, "get_torch_device", lambda: CARD),
    ]
    with ExitStack() as stack:
        for target, name, value in changes:
            stack.enter_context(patch.object(target, name, value))
        yield


def weights(model: Any) -> dict[str, torch.Tensor]:
    return dict(model.model.diffusion_model.named_parameters())


def case_a_resident_clone_computes_in_the_precision_of_the_model(folder: Path) -> None:
    path = checkpoint(folder)
    with half_precision():
        expected = comfy.sd.load_diffusion_model(path)
        with dynamic():
            model = comfy.sd.load_diffusion_model(path)
            assert model.is_dynamic()
            found = host_model._resident_clone(model)
    assert not found.is_dynamic()
    for name, weight in weights(expected).items():
        assert torch.equal(weights(found)[name], weight) and weights(found)[name].dtype == weight.dtype, name
        assert not weights(found)[name].requires_grad
    assert found.model_size() == expected.model_size()
    assert all(weight.dtype == torch.float32 for weight in weights(model).values()), "the model itself stays"
