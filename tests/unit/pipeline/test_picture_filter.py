"""Frames through picture networks: sizes, ranges, layouts, batches, further inputs, memory that runs out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from i2v_tensorrt.common.errors import EngineError, InputError
from i2v_tensorrt.pipeline.filters.stream import FrameError
from i2v_tensorrt.pipeline.pictures.contract import NHWC, Contract, More
from i2v_tensorrt.pipeline.pictures.picture_filter import PAD, PictureFilter, Wishes

PLAIN = Contract("x", 3, "NCHW", "float32", "y", ("y",), 3, "NCHW", "float32", batches=True)
CPU = torch.device("cpu")


def frame(height: int = 20, width: int = 30, seed: int = 0) -> Tensor:
    return torch.rand(height, width, 3, generator=torch.Generator().manual_seed(seed))


def through(contract: Contract, network: Any, frames: list[Tensor], batch: int = 3, **wishes: Any) -> list[Tensor]:
    return list(PictureFilter(network, contract, device=CPU, batch=batch, wishes=Wishes(**wishes))(frames))


class Seen:
    """A network that gives its picture back and remembers what it was asked."""

    def __init__(self) -> None:
        self.inputs: list[Mapping[str, Tensor]] = []

    def __call__(self, inputs: Mapping[str, Tensor]) -> Tensor:
        self.inputs.append(inputs)
        return inputs["x"]


@pytest.mark.parametrize("kind", ["0..1", "-1..1", "0..255", "imagenet"])
def test_a_picture_stands_in_the_range_that_the_network_wants(kind: str) -> None:
    seen, given = Seen(), frame()
    through(replace(PLAIN, range_in=kind), seen, [given])
    mean, deviation = {
        "0..1": (0.0, 1.0),
        "-1..1": (0.5, 0.5),
        "0..255": (0.0, 1 / 255),
        "imagenet": (torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])),
    }[kind]
    assert torch.allclose(seen.inputs[0]["x"][0].permute(1, 2, 0), (given - mean) / deviation, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["0..1", "-1..1", "0..255"])
@pytest.mark.parametrize("layout", ["NCHW", NHWC])
@pytest.mark.parametrize("colours", ["RGB", "BGR"])
def test_what_goes_through_unchanged_comes_out_unchanged(kind: str, layout: str, colours: str) -> None:
    contract = replace(PLAIN, range_in=kind, range_out=kind, layout=layout, out_layout=layout, multiple=8)
    frames = [frame(seed=seed) for seed in range(5)]
    found = through(contract, Seen(), frames, colours=colours)
    assert len(found) == 5
    for one, other in zip(found, frames, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_frames_are_padded_to_the_multiple_and_cut_again() -> None:
    seen = Seen()
    (found,) = through(replace(PLAIN, multiple=32), seen, [frame(33, 47)])
    assert seen.inputs[0]["x"].shape == (1, 3, 64, 64) and found.shape == (33, 47, 3)


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_frames_go_together_and_keep_their_order(batch: int) -> None:
    seen, frames = Seen(), [frame(seed=seed) for seed in range(5)]
    found = through(PLAIN, seen, frames, batch=batch)
    assert [len(inputs["x"]) for inputs in seen.inputs] == [min(batch, 5 - start) for start in range(0, 5, batch)]
    assert all(torch.equal(one, other) for one, other in zip(found, frames, strict=True))


def test_a_network_that_takes_one_picture_is_given_one() -> None:
    seen = Seen()
    through(replace(PLAIN, batches=False), seen, [frame(), frame()], batch=8)
    assert [len(inputs["x"]) for inputs in seen.inputs] == [1, 1]


def test_a_batch_that_memory_does_not_do_for_is_halved_and_stays_so() -> None:
    sizes = []

    def network(inputs: Mapping[str, Tensor]) -> Tensor:
        sizes.append(len(inputs["x"]))
        if len(inputs["x"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return inputs["x"]

    frames = [frame(seed=seed) for seed in range(8)]
    found = through(PLAIN, network, frames, batch=4)
    assert sizes == [4, 2, 2, 2, 2]
    assert all(torch.equal(one, other) for one, other in zip(found, frames, strict=True))


@pytest.mark.parametrize(("range_out", "expected"), [("sigmoid", torch.sigmoid), ("0..1", lambda x: x)])
def test_a_mask_has_the_frames_own_size(range_out: str, expected: Any) -> None:
    contract = replace(PLAIN, out_channels=1, scale=(1, 4), multiple=4, range_out=range_out)

    def network(inputs: Mapping[str, Tensor]) -> Tensor:
        return torch.nn.functional.avg_pool2d(inputs["x"].mean(1, keepdim=True), 4)

    given = torch.full((18, 30, 3), 0.25)
    (found,) = through(contract, network, [given])
    assert found.shape == (18, 30, 1)
    assert torch.allclose(found, expected(torch.full_like(found, 0.25)), atol=1e-6)


def test_depth_is_stretched_by_the_first_frames_span_for_all() -> None:
    contract = replace(PLAIN, out_channels=1, range_out="min..max")
    frames = [torch.linspace(0, high, 600).reshape(20, 30, 1).expand(20, 30, 3) for high in (0.5, 1.0)]
    found = through(contract, lambda inputs: 40 + 8 * inputs["x"][:, :1], frames, batch=1)
    assert [float(each.max()) for each in found] == pytest.approx([1.0, 1.0])
    assert float(found[1][5, 0, 0]) == pytest.approx(2 * float(found[0][5, 0, 0]), rel=1e-3)


@pytest.mark.parametrize("fit", ["squash", PAD])
def test_a_network_of_one_size_is_given_it_and_the_frame_comes_back(fit: str) -> None:
    seen = Seen()
    given = torch.linspace(0, 1, 80)[None, :, None].expand(40, 80, 3)
    (found,) = through(replace(PLAIN, size=(64, 64), batches=False), seen, [given], fit=fit)
    assert seen.inputs[0]["x"].shape == (1, 3, 64, 64) and found.shape == given.shape
    assert (found - given).abs().mean() < 0.01
    column = seen.inputs[0]["x"][0, 0, :, 40]
    assert (column - column[0]).abs().max() < 1e-5  # in proportion or not, this picture changes across alone


def test_a_grey_network_and_one_with_transparency() -> None:
    seen, given = Seen(), frame()
    (found,) = through(replace(PLAIN, channels=1, out_channels=1), seen, [given])
    grey = (given * torch.tensor([0.299, 0.587, 0.114])).sum(-1, keepdim=True)
    assert torch.allclose(found, grey, atol=1e-6)
    (found,) = through(replace(PLAIN, channels=4, out_channels=4), seen, [given])
    assert torch.equal(found[..., 3], torch.ones(20, 30)) and torch.allclose(found[..., :3], given, atol=1e-6)


def test_bytes_are_rounded() -> None:
    contract = replace(PLAIN, dtype="uint8", range_in="0..255", range_out="0..255", out_dtype="uint8")
    seen, given = Seen(), frame()
    (found,) = through(contract, seen, [given])
    assert seen.inputs[0]["x"].dtype == torch.uint8
    assert torch.allclose(found, (given * 255).round() / 255, atol=1e-6)


def test_further_inputs_reach_the_network() -> None:
    seen = Seen()
    number, vector, second = (
        More("w", "float64", (1,)),
        More("e", "float32", (1, 8)),
        More("p", "float32", (None, 3, None, None)),
    )
    through(replace(PLAIN, more=(number, vector)), seen, [frame()], number=0.7, more=torch.arange(8.0))
    assert seen.inputs[0]["w"].dtype == torch.float64 and float(seen.inputs[0]["w"]) == pytest.approx(0.7)
    assert torch.equal(seen.inputs[0]["e"], torch.arange(8.0)[None])
    other = frame(50, 60)[None]
    through(replace(PLAIN, more=(second,), size=(20, 30)), seen, [frame(), frame()], more=other, batch=2)
    assert seen.inputs[-1]["p"].shape == (2, 3, 20, 30)
    through(replace(PLAIN, more=(replace(second, shape=(1, 3, 7, 9)),)), seen, [frame(), frame()], more=other, batch=2)
    assert seen.inputs[-1]["p"].shape == (1, 3, 7, 9)


@pytest.mark.parametrize(
    ("more", "given", "told"),
    [
        (More("e", "float32", (1, 8)), None, r"Expected a tensor \[1, 8\] for the network's input e, found none"),
        (More("e", "float32", (1, 8)), torch.zeros(3), r"Expected a tensor \[1, 8\] for e, found \[3\]"),
        (More("p", "float32", (None, 3, None, None)), torch.zeros(3, 4), r"Expected a picture for p, found \[3, 4\]"),
    ],
    ids=["none", "size", "rank"],
)
def test_a_further_input_that_does_not_fit_is_refused(more: More, given: Tensor | None, told: str) -> None:
    with pytest.raises(InputError, match=told):
        through(replace(PLAIN, more=(more,)), Seen(), [frame()], more=given)


def test_a_bad_frame_is_named() -> None:
    with pytest.raises(FrameError, match="Frame 1: Expected frames of one size"):
        through(PLAIN, Seen(), [frame(), frame(8, 8)], batch=1)


def test_the_file_must_be_the_one_that_was_looked_at(tmp_path: Path) -> None:
    from i2v_tensorrt.pipeline.pictures.network import load_network

    (tmp_path / "network.onnx").write_bytes(b"other")
    with pytest.raises(EngineError, match="network.onnx changed since"):
        load_network(str(tmp_path / "network.onnx"), "0" * 64, "{}")
