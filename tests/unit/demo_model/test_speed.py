"""What is done for speed computes the same, and the profile says where the time goes."""

import logging

import pytest
import torch
from torch import nn

from i2v_tensorrt.demo_model.training import speed
from i2v_tensorrt.demo_model.training.speed import ExactConvolution, TimeConvolution, Watch, flatten_time

CPU = torch.device("cpu")


def test_a_convolution_over_time_is_the_same_as_a_plane_one() -> None:
    torch.manual_seed(0)
    wanted = nn.Conv3d(3, 5, (3, 1, 1), padding=(1, 0, 0))
    clip = torch.randn(2, 3, 4, 6, 5)
    expected = wanted(clip)
    holder = nn.Sequential(wanted)
    flatten_time(holder)
    assert isinstance(holder[0], TimeConvolution)
    assert torch.allclose(holder(clip), expected, atol=1e-6)


def test_other_convolutions_over_time_are_left_alone() -> None:
    holder = nn.Sequential(nn.Conv3d(2, 2, (3, 3, 3), padding=1), nn.Conv3d(2, 2, (3, 1, 1)))
    flatten_time(holder)
    assert not any(isinstance(part, TimeConvolution) for part in holder)


def test_an_exact_convolution_ignores_autocast() -> None:
    torch.manual_seed(0)
    exact = ExactConvolution(3, 2, 3)
    image = torch.randn(1, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        made = exact(image)
        rough = nn.Conv2d.forward(exact, image)
    assert made.dtype == torch.float32 and rough.dtype == torch.bfloat16
    assert torch.equal(made, exact(image))


def test_the_watch_names_what_ran(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "WARM", 2)
    monkeypatch.setattr(speed, "WATCHED", 1)
    watch = Watch(CPU)
    with caplog.at_level(logging.INFO):
        for _ in range(4):
            watch.tick()
            torch.mm(torch.ones(64, 64), torch.ones(64, 64))
    assert "aten::mm" in caplog.text
    assert caplog.text.count("a step:") == 1
