"""What every runner of an engine keeps to."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from i2v_tensorrt.common.errors import EngineError, InputError
from i2v_tensorrt.engine_builder.backends.base import Runner
from i2v_tensorrt.engine_builder.graph.onnx_export import example_inputs


def toy_sizes(batch: int = 2, frames: int = 5, height: int = 10, width: int = 4) -> dict[str, int]:
    return {"batch": batch, "frames": frames, "latent_height": height, "latent_width": width}


RANGED = [toy_sizes(*each) for each in ((2, 4, 8, 6), (2,), (1, 1, 4, 4), (1, 16, 4, 32), (2, 1, 32, 6))]
REFUSED = [
    (toy_sizes(frames=17), "frames is 17, 1 above the largest supported 16"),
    (toy_sizes(height=9), "latent_height is 9, 1 more than a multiple of 2"),
    (toy_sizes(frames=0), "frames is 0, 1 below the smallest supported 1"),
]


def assert_contract(
    runner: Runner, network: torch.nn.Module, held: str, tolerance: float, ranged: Sequence[dict[str, int]] = RANGED
) -> None:
    """Of a runner of a network of `toy_spec`, which keeps in `held` what it loads."""
    inputs = example_inputs(runner.spec, toy_sizes())
    for _ in range(2):
        assert not runner.is_loaded
        with pytest.raises(EngineError, match=f"^The {runner.backend} engine of core is not loaded.$"):
            runner(inputs)
        runner.load()
        first = getattr(runner, held)
        runner.load()
        assert runner.is_loaded and getattr(runner, held) is first, "a second load does nothing"
        _assert_results(runner, network, tolerance, ranged)
        runner.unload()
        runner.unload()
    assert not runner.is_loaded


def _assert_results(
    runner: Runner, network: torch.nn.Module, tolerance: float, ranged: Sequence[dict[str, int]]
) -> None:
    """The network's own at every size, the same of any layout and floating dtype; other sizes are refused."""

    def found(inputs: dict[str, torch.Tensor], **changes: torch.Tensor) -> torch.Tensor:
        return runner({**inputs, **changes})["prediction"]

    for sizes in ranged:
        inputs = example_inputs(runner.spec, sizes)
        first, sample = found(inputs), inputs["sample"]
        kept = first.clone()
        torch.testing.assert_close(first, network(**inputs), rtol=0, atol=tolerance)
        shifted = torch.empty(sample.numel() + 1)[1:].copy_(sample.flatten()).reshape(sample.shape)
        strided = sample.transpose(3, 4).contiguous().transpose(3, 4)
        expanded = sample[:1].expand_as(sample)
        assert torch.equal(found(inputs, sample=expanded), found(inputs, sample=expanded.contiguous()))
        assert torch.equal(first, kept), "a result is the caller's own"
        again = [found(inputs, sample=each) for each in (shifted, strided)]
        again.append(found({name: tensor.double() for name, tensor in inputs.items()}))
        assert all(torch.equal(first, each) for each in again)
    for sizes, words in REFUSED:
        with pytest.raises(InputError, match=f"^The {runner.backend} engine of core: {words}"):
            runner(example_inputs(runner.spec, sizes))
