"""DynamiCrafter's networks and schedule against diffusers' modules and the published formula, with controls.

Against the published code itself (Doubiiu/DynamiCrafter at c453369) they were compared once by hand: its UNet and its
projection of random weights, saved under its names, through `run.py convert`. At three sizes the fused core was off by
2.4e-6 of the greatest value at most, with the 256 model's factors too, and the projection by 6e-7; another fs, tokens
reversed or zeroed by 5 to 9 hundredths.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from i2v_tensorrt.benchmarks.dynamicrafter_checks import stepped
from i2v_tensorrt.benchmarks.dynamicrafter_reference import ReferenceUNet, reference_projection, reference_unet
from i2v_tensorrt.engine_builder.store.store import EngineStore
from i2v_tensorrt.pipeline.models.base import VideoModel
from i2v_tensorrt.pipeline.models.dynamicrafter.published_settings import KINDS
from i2v_tensorrt.pipeline.models.dynamicrafter.stored_names import published
from i2v_tensorrt.pipeline.models.registry import open_model
from i2v_tensorrt.runtime.engines.engine_set import EngineSet
from i2v_tensorrt.runtime.engines.policy import EnginePolicy

from ..helpers.loras import PUBLISHED, layers, write_lora
from ..helpers.reference_clip import Clip, difference, ours
from ..helpers.toys import CPU
from .families import FAMILIES

NAME = "dynamicrafter"
PARITY = 1e-5
PLANES = [(8, 8), (16, 8), (8, 24)]
Inputs = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def reference(folder: Callable[[str], Path]) -> ReferenceUNet:
    return reference_unet(folder(NAME) / "unet")


@pytest.fixture(scope="module")
def core(model: Callable[[str], VideoModel]) -> torch.nn.Module:
    return model(NAME).load("core", "fp32")


def inputs_of(height: int, width: int, branches: int = 2) -> Inputs:
    """Random ones, other in each branch where guidance makes them differ."""
    generator = torch.Generator().manual_seed(height + width)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "sample": normal(1, 16, 4, height, width).repeat(branches, 1, 1, 1, 1),
        "timestep": torch.full((branches,), 701.0),
        "image_latents": normal(1, 16, 4, height, width).repeat(branches, 1, 1, 1, 1),
        "text_states": normal(branches, 77, 32),
        "image_tokens": normal(branches, 16, 2, 32),
        "fs": torch.full((branches,), 13.0),
    }


@torch.no_grad()
def expected(reference: ReferenceUNet, given: Inputs) -> torch.Tensor:
    """The reference's prediction, laid out as the core's."""
    return reference.predict(given)


@torch.no_grad()
def off(core: torch.nn.Module, given: Inputs, wanted: torch.Tensor) -> float:
    return float((core(**given) - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("branches", [2, 1], ids=["guided", "alone"])
@pytest.mark.parametrize("plane", PLANES, ids=str)
def test_the_core_is_diffusers_modules(
    reference: ReferenceUNet, core: torch.nn.Module, plane: tuple[int, int], branches: int
) -> None:
    given = inputs_of(*plane, branches)
    assert off(core, given, expected(reference, given)) <= PARITY


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("fs", lambda x: x + 1),
        ("image_tokens", torch.zeros_like),
        ("image_tokens", lambda x: x.flip(1)),
        ("image_tokens", lambda x: x.flip(0)),
        ("text_states", lambda x: x.flip(0)),
        ("image_latents", torch.zeros_like),
        ("image_latents", lambda x: x.flip(1)),
        ("timestep", lambda x: x - 1),
    ],
    ids=["another fs", "no tokens", "reversed", "swapped", "texts", "no latents", "reversed latents", "timestep"],
)
def test_control_another_input_is_seen(
    reference: ReferenceUNet, core: torch.nn.Module, name: str, change: Callable[[Any], Any]
) -> None:
    given = inputs_of(8, 8)
    assert off(core, {**given, name: change(given[name])}, expected(reference, given)) > 10 * PARITY


@pytest.mark.parametrize("batch", [1, 2])
@torch.no_grad()
def test_the_projection_is_diffusers(
    model: Callable[[str], VideoModel], folder: Callable[[str], Path], batch: int
) -> None:
    states = torch.randn(batch, 17, 32, generator=torch.Generator().manual_seed(batch))
    projection = model(NAME).load("image_projection", "fp32")
    wanted = reference_projection(folder(NAME) / "image_projection")(states)
    assert (projection(states) - wanted).abs().max() <= PARITY * wanted.abs().max()
    assert (projection(states.flip(1)) - wanted).abs().max() <= PARITY * wanted.abs().max(), "no place has an order"
    assert (projection(states * 1.1) - wanted).abs().max() > 100 * PARITY, "a control"


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("steps", [1, 7, 20, 30, 50])
@pytest.mark.parametrize("kind", KINDS)
def test_the_schedule_is_the_published_formula(kind: str, steps: int, eta: float) -> None:
    found, wanted = stepped(kind, steps, eta)
    assert (found - wanted).abs().max() <= PARITY * wanted.abs().max()


@pytest.mark.parametrize(
    "change",
    [{"dynamic_rescale_base": None}, {"dynamic_rescale_base": 0.3}, {"rescale_betas_zero_snr": False}],
    ids=str,
)
def test_control_another_schedule_is_seen(change: dict[str, Any]) -> None:
    found, wanted = stepped("512", 50, 1.0, **change)
    assert (found - wanted).abs().max() > 100 * PARITY * wanted.abs().max()


def test_the_rescale_of_guidance_counts(model: Callable[[str], VideoModel]) -> None:
    outputs = {"prediction": torch.randn(2, 16, 4, 8, 8, generator=torch.Generator().manual_seed(0))}
    spreads = {name: float(model(name).combine(outputs, 7.5).std()) for name in FAMILIES if name.startswith(NAME)}
    own = float(outputs["prediction"][1].std())
    plain = spreads.pop(f"{NAME}_256")
    assert list(spreads.values()) == pytest.approx([0.7 * own + 0.3 * plain] * 3, rel=1e-5)
    assert plain > 5 * own, "a control"


@pytest.mark.slow
def test_a_lora_under_the_published_names_is_the_checkpoint_with_the_sums(
    model: Callable[[str], VideoModel], folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """From the file to the latents: every layer that a LoRA may name, in the names of the published code."""
    part, strength, clip = model(NAME).checkpoint.parts["unet"], 0.5, FAMILIES[NAME].clip
    modules = {name: shape for name, shape in layers(part).items() if published(name)}
    assert len(modules) > 300 and any(name.endswith("to_v_ip") for name in modules)
    sums = write_lora(tmp_path / "style.safetensors", modules, PUBLISHED, lambda module: published(module)[0])

    merged = shutil.copytree(folder(NAME), tmp_path / "merged")
    (file,) = (merged / "unet").glob("*.safetensors")
    tensors = load_file(file)
    for module, extra in sums.items():
        name = f"{module}.weight"
        tensors[name] = (tensors[name].double() + strength * extra).float()
    save_file(tensors, file)

    adapted = model(NAME).with_adapter(tmp_path / "style.safetensors", strength)
    found, wanted, without = (latents(each, clip, tmp_path) for each in (adapted, open_model(merged), model(NAME)))
    assert difference(found, wanted) <= PARITY
    assert difference(found, without) > 100 * PARITY, "a control"


def latents(model: VideoModel, clip: Clip, store: Path) -> torch.Tensor:
    return ours(EngineSet(model, EngineStore(store / "engines"), EnginePolicy("eager", "fp32"), CPU), clip)
