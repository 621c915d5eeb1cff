"""A pretended GPU under ComfyUI's own memory manager: what is on it is counted, and nothing is computed there."""

import gc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar
from unittest.mock import patch
from weakref import WeakKeyDictionary

import comfy.model_management as memory
import torch
from comfy.model_patcher import ModelPatcher

from i2v_tensorrt.common.shapes import ShapeProfile
from i2v_tensorrt.common.spec import EngineSpec, NetworkSpec
from i2v_tensorrt.engine_builder.backends.base import Runner, no_collection

GIB = 1 << 30
DEVICE = torch.device("cuda", 0)


class Card:
    """So many bytes of memory: what each holder has of it, and what PyTorch keeps of it for its next tensors."""

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes, self.cached_bytes = total_bytes, 0
        self.held: WeakKeyDictionary[object, int] = WeakKeyDictionary()
        self.emptied = 0
        """How often PyTorch gave back what it keeps."""

    @property
    def free_bytes(self) -> int:
        return self.total_bytes - sum(self.held.values())

    def empty_cache(self, *_: Any, **__: Any) -> None:
        self.cached_bytes = 0
        self.emptied += 1

    def told(self, device: object = None, torch_free_too: bool = False) -> Any:
        """What ComfyUI is told of free memory, of which it counts what PyTorch keeps."""
        return (self.free_bytes, self.cached_bytes) if torch_free_too else self.free_bytes


@contextmanager
def pretended(card: Card | None = None) -> Iterator[Card]:
    """Has ComfyUI compute on the card; on a large one where none is named."""
    card = card or Card(64 * GIB)
    changes: dict[str, Any] = {
        "get_torch_device": lambda: DEVICE,
        "get_all_torch_devices": lambda *_, **__: [DEVICE],
        "get_total_memory": lambda *_, **__: card.total_bytes,
        "get_free_memory": card.told,
        "soft_empty_cache": card.empty_cache,
        "vram_state": memory.VRAMState.NORMAL_VRAM,
    }
    with ExitStack() as stack:
        for name, value in changes.items():
            stack.enter_context(patch.object(memory, name, value))
        yield card


class CardModel(ModelPatcher):
    """A model of ComfyUI's that takes so much of the card while it is loaded."""

    class Network(torch.nn.Module):
        device: torch.device | None = None

    def __init__(self, card: Card, size_bytes: int) -> None:
        super().__init__(self.Network(), DEVICE, torch.device("cpu"), size_bytes)
        self.card = card

    @property
    def is_loaded(self) -> bool:
        return self.model in self.card.held

    def load(self, *_: Any, **__: Any) -> None:
        self.card.held[self.model] = self.model.model_loaded_weight_memory = self.size
        self.model.device = DEVICE
        self.model.current_weight_patches_uuid = self.patches_uuid

    def partially_unload(self, *_: Any, **__: Any) -> int:
        return 0

    def unpatch_model(self, device_to: Any = None, unpatch_weights: bool = True) -> None:
        if unpatch_weights:
            self.card.held.pop(self.model, None)
            self.model.model_loaded_weight_memory = 0
            self.model.device = device_to


class CardRunner(Runner):
    """A runner that takes so much of the card while it is loaded."""

    backend: ClassVar[str] = "eager"

    def __init__(self, card: Card, size_bytes: int, component: str = "core", device: torch.device = DEVICE) -> None:
        network = NetworkSpec("toy", component, "c" * 64, "a" * 64, (), (), ShapeProfile())
        super().__init__(EngineSpec(network, ShapeProfile(), "fp16"), device)
        self.card, self.size_bytes = card, size_bytes

    @property
    def is_loaded(self) -> bool:
        return self in self.card.held

    @property
    def memory_bytes(self) -> int:
        return self.size_bytes

    def load(self) -> None:
        self.card.held[self] = self.size_bytes

    def unload(self) -> None:
        self.card.held.pop(self, None)

    def _run(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return inputs


@contextmanager
def uncollected() -> Iterator[None]:
    """Python's collector runs only where a case has it run: what dies here dies by its last reference."""
    gc.collect()
    with no_collection():
        yield
