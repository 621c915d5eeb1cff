"""A clip whose guidance branches run apart is the clip of one batch, for every family."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ..helpers.reference_clip import difference, ours
from ..helpers.second_device import SecondDevice
from ..helpers.stages import engines_of
from .families import FAMILIES

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers gives tensors to numpy
ROUNDING = 1e-5
"""Of the greatest latent: a batch of two and two batches of one are rounded in another order."""


@pytest.mark.parametrize("name", FAMILIES)
def test_both_devices_take_a_branch_of_every_step(folder: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    engines, clip = engines_of(folder(name), tmp_path), FAMILIES[name].clip
    assert clip.denoising.guidance_scale > 1
    pair = SecondDevice(engines)
    found = ours(pair.engines, clip)
    assert pair.batches == [1] * len(pair.batches)
    assert len(pair.batches) >= clip.denoising.sampler.steps
    assert difference(found, ours(engines, clip)) <= ROUNDING
    assert not [note for note in pair.engines.take_notes() if "device" in note]
