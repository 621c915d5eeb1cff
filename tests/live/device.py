"""What the servers under test compute on, and how far two clips may be apart there."""

from __future__ import annotations

import math
import os
import shlex
from dataclasses import dataclass

import torch

from i2v_tensorrt.remote.comfyui.client import ComfyClient
from i2v_tensorrt.tests.live.answers import json_of, run
from i2v_tensorrt.tests.live.graphs import node

CANNOT = "cannot run"
FLAGS = "I2VTRT_LIVE_FLAGS"
"""Names further flags of ComfyUI for the live tests, such as `--disable-cuda-malloc` or `--lowvram`."""
HALF_PSNR = 44.0
"""What two ways to a clip in fp16 are alike by at least, in dB.

A rounding to 11 bits lies up to 2^11, 66 dB, below the value; guidance of 9 takes 9 times one prediction and 8 times
another, which raises what differs by 20 log10(sqrt(9^2 + 8^2)) = 22 dB. On a CPU fp16 was seen to leave 55 to 63 dB.
"""
BF16_VAE_PSNR = 44.0
"""What a decode in bf16 and one in fp16 are alike by at least, in dB.

A rounding to 8 bits is off by 2^-9/sqrt(3) of the value on average, 59 dB below it; those of some 30 layers in a row
add up to sqrt(30) times that, 15 dB. On a CPU bf16 was seen to leave 50 dB.
"""


def flags() -> list[str]:
    """The further flags of the servers under test."""
    return shlex.split(os.environ.get(FLAGS, ""))


def keeps_outputs() -> bool:
    """Whether the servers under test keep what nodes gave, models among it, for the next prompt."""
    return "--cache-none" not in flags()


@dataclass(frozen=True)
class Device:
    """The kind of a server's device (`cpu`, `cuda`) and its number, where it has one."""

    kind: str
    index: int | None

    @property
    def precision(self) -> str:
        """What `auto` stands for."""
        return "fp16" if self.kind == "cuda" else "fp32"

    @property
    def rare(self) -> str:
        """A precision in which no test builds engines unless it asks for it."""
        return "bf16" if self.kind == "cuda" else "fp16"

    @property
    def here(self) -> str:
        """How nodes say where a network runs by `auto`."""
        return f"{self.precision} on {self.place}"

    @property
    def place(self) -> str:
        """The device's name in PyTorch."""
        return self.kind if self.index is None else f"{self.kind}:{self.index}"


def device_of(url: str) -> Device:
    """The device of the server there."""
    first, *_ = json_of(f"{url}/system_stats")["devices"]
    return Device(first["type"], first["index"])


def assert_alike(one: torch.Tensor, other: torch.Tensor, device: Device, levels: int) -> None:
    """Two clips in 0..255, of which in fp32 no value may differ by more than so many levels."""
    assert one.shape == other.shape
    apart = one.int() - other.int()
    if device.precision == "fp32":
        assert apart.abs().max() <= levels
    else:
        assert decibels(float((apart / 255).double().square().mean())) >= HALF_PSNR


def decibels(mse: float) -> float:
    """The peak signal-to-noise ratio of frames in 0..1."""
    return -10 * math.log10(mse) if mse else math.inf


def why_no_onnxruntime(client: ComfyClient) -> str | None:
    """Why the server's ONNX Runtime does not serve its device, as the Engine Doctor says; None where it does."""
    table = run(client, {"1": node("I2VTRT_EngineDoctor")}).outputs["1"]["table"]
    rows = {row[0]: row[1:] for row in table}
    state, reason = rows["backend onnxruntime"]
    return reason if state == CANNOT else None


def rare_encoders(client: ComfyClient, device: Device) -> set[str]:
    """The first digits of each picture encoder in the rare precision in the store, which other tests fill as well."""
    listed = run(client, {"1": node("I2VTRT_EngineManager", action="list", engine="")})
    rows = listed.outputs["1"]["table"][1:]
    return {row[0] for row in rows if row[1] == "image_encoder" and row[2].endswith(f" {device.rare}")}
