"""Wan's transformer over parts of the tokens: all parts together give what the whole network gives."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from i2v_tensorrt.common.errors import InputError
from i2v_tensorrt.common.shapes import ShapeProfile
from i2v_tensorrt.common.spec import EngineSpec
from i2v_tensorrt.engine_builder.graph.onnx_export import example_inputs
from i2v_tensorrt.pipeline.models.registry import open_model
from i2v_tensorrt.pipeline.models.wan.sliced import Ranks, among, shares, sliced

from ...helpers.ranks import Meeting, together

SIZES = {"batch": 1, "frames": 3, "latent_height": 6, "latent_width": 10}


def test_shares_are_even_and_whole() -> None:
    assert shares(8, 2) == [4, 4]
    assert shares(7, 3) == [3, 2, 2]
    assert sum(shares(32760, 7)) == 32760
    assert max(shares(101, 4)) - min(shares(101, 4)) == 1


def predicted(network: torch.nn.Module, inputs: dict[str, torch.Tensor], count: int) -> list[torch.Tensor]:
    """What each of so many processes gives."""
    meeting = Meeting(count)

    def run(rank: int) -> torch.Tensor:
        with torch.no_grad(), among(Ranks(rank, count, meeting.gather(rank))):
            return network(**inputs)

    return together(run, count)


@pytest.mark.parametrize("kind", ["wan21", "a14b", "ti2v"])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_parts_are_the_whole(tiny_wan: Callable[[str], Path], kind: str, batch: int, count: int) -> None:
    model = open_model(tiny_wan(kind))
    network, spec = model.load("core", "fp32"), model.components["core"].spec
    inputs = example_inputs(EngineSpec(spec, ShapeProfile(), "fp32"), {**SIZES, "batch": batch})
    with torch.no_grad():
        expected = network(**inputs)
    found = predicted(sliced(network), inputs, count)
    assert len(found) == count
    for each in found:
        assert (each - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_what_is_not_gathered_is_missed(tiny_wan: Callable[[str], Path]) -> None:
    """A control: keys and values of the own part alone, twice, give another clip."""
    model = open_model(tiny_wan("wan21"))
    network, spec = model.load("core", "fp32"), model.components["core"].spec
    inputs = example_inputs(EngineSpec(spec, ShapeProfile(), "fp32"), SIZES)
    with torch.no_grad(), among(Ranks(0, 2, lambda x: torch.stack([x, x]))):
        found = sliced(network)(**inputs)
    with torch.no_grad():
        expected = network(**inputs)
    assert (found - expected).abs().max() > 1e-3


def test_more_processes_than_tokens_are_refused(tiny_wan: Callable[[str], Path]) -> None:
    model = open_model(tiny_wan("ti2v"))
    network, spec = model.load("core", "fp32"), model.components["core"].spec
    inputs = example_inputs(EngineSpec(spec, ShapeProfile(), "fp32"), {**SIZES, "latent_height": 2, "latent_width": 2})
    with (
        torch.no_grad(),
        among(Ranks(0, 2, lambda x: torch.stack([x, x]))),
        pytest.raises(InputError, match="at least 2 tokens for as many processes, found 1"),
    ):
        sliced(network)(**inputs)


def test_only_wan_is_sliced() -> None:
    with pytest.raises(InputError, match="found Linear"):
        sliced(torch.nn.Linear(2, 2))
