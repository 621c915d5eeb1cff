"""Weights under a LoRA are read from disk once, as far as memory has room to keep them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch

from i2v_tensorrt.pipeline.models.checkpoints.originals import SHARE, Originals
from i2v_tensorrt.pipeline.models.model_networks import reading_note
from i2v_tensorrt.pipeline.models.registry import open_model

from ...helpers.loras import DIFFUSERS, layers, write_lora

PART = "transformer"
Wan = Callable[[str], Path]


@pytest.mark.parametrize("room", [True, False])
def test_from_one_lora_to_another_and_back_no_changed_weight_is_read_again(
    tiny_wan: Wan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: bool
) -> None:
    model, read = open_model(tiny_wan("wan21")), count_reads(monkeypatch)
    model.originals = Originals(lambda: 1 << 40 if room else 0)
    for seed in (1, 2):
        write_lora(tmp_path / f"{seed}.safetensors", layers(model.checkpoint.parts[PART]), DIFFUSERS, seed=seed)
    one, other = (model.with_adapter(tmp_path / f"{seed}.safetensors", 1.0) for seed in (1, 2))
    first = {name: value.clone() for name, value in one.part(PART, "bf16").state_dict().items()}
    changed = {f"{name}.weight" for name in layers(model.checkpoint.parts[PART])}
    assert changed <= set(read) and read.count(min(changed)) == 1
    without = open_model(tiny_wan("wan21")).part(PART, "bf16").state_dict()
    read.clear()
    assert all(torch.equal(without[name], x) for name, x in model.part(PART, "bf16").state_dict().items())
    other.part(PART, "bf16")
    again = one.part(PART, "bf16").state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not changed & set(read) if room else changed <= set(read)
    assert (reading_note(one) is None) == room


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list to which the name of every tensor that is read from a file is added from now on."""
    read: list[str] = []

    class Counted:
        def __init__(self, stream: Any) -> None:
            self._stream = stream

        def __getattr__(self, name: str) -> Any:
            return getattr(self._stream, name)

        def get_tensor(self, name: str) -> torch.Tensor:
            read.append(name)
            return self._stream.get_tensor(name)

    @contextmanager
    def counting(*arguments: Any, **options: Any) -> Iterator[Counted]:
        with open_file(*arguments, **options) as stream:
            yield Counted(stream)

    open_file = safetensors.safe_open
    monkeypatch.setattr(safetensors, "safe_open", lambda path, **options: counting(path, **options))
    return read


def test_no_more_is_kept_than_the_share_of_free_memory() -> None:
    free = [3 * 4000]
    originals = Originals(lambda: free[0])
    for number in range(9):
        originals.keep(("unet", "", str(number)), torch.full((250,), float(number)))
        free[0] = 12000 - originals.size_bytes
    assert originals.size_bytes == SHARE * 12000
    assert [originals.find(("unet", "", str(number))) is not None for number in range(5)] == [True] * 4 + [False]


def test_what_is_kept_is_a_copy() -> None:
    originals, tensor = Originals(lambda: 1 << 20), torch.ones(3)
    originals.keep(("unet", "", "a"), tensor)
    tensor.zero_()
    kept = originals.find(("unet", "", "a"))
    assert kept is not None and kept.tolist() == [1, 1, 1]


def test_what_is_kept_in_inference_mode_is_a_weight_outside_it() -> None:
    originals, key = Originals(lambda: 1 << 20), ("unet", "", "weight")
    with torch.inference_mode():  # as ComfyUI runs its nodes
        originals.keep(key, torch.ones(3))
    found = originals.find(key)
    assert found is not None
    torch.nn.Linear(3, 1).weight = torch.nn.Parameter(found[None])
