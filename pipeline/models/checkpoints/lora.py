"""LoRA files (Hu et al. 2021, arXiv:2106.09685) merged into the weights of a checkpoint's parts.

A file is understood by its tensors' names: those of diffusers and PEFT, of the trainers that write underscores for
dots, and the names that a family's own publishers gave its modules. A file with tensors of no known module is
refused with their names, for half of an adapter is another adapter.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from ....common.errors import CheckpointError
from ....common.validation import check_number
from .diffusers_folder import Part, tensor_shapes
from .file_digests import Digested, Piece

if TYPE_CHECKING:
    import torch

MOST_STRENGTH = 100.0
TEXT = ("text_encoder.", "lora_te_", "lora_te1_")
"""Prefixes of the text encoder's tensors."""
DENOISER = ("model.diffusion_model.", "diffusion_model.", "transformer.", "unet.", "lora_unet_", "lora_transformer_")
"""Prefixes of tensors of the networks that run at a step; tensors without a prefix belong to these networks, too."""
ROLES = (
    (re.compile(r"[._]lora(?:_A(?:\.\w+)?|_down|\.down)\.weight$"), "down", ".weight"),
    (re.compile(r"[._]lora(?:_B(?:\.\w+)?|_up|\.up)\.weight$"), "up", ".weight"),
    (re.compile(r"[._]lora_B(?:\.\w+)?\.bias$"), "difference", ".bias"),
    (re.compile(r"\.diff_b$"), "difference", ".bias"),
    (re.compile(r"\.diff$"), "difference", ".weight"),
    (re.compile(r"\.alpha$"), "alpha", ".weight"),
)
"""Endings of tensor names, each with the tensor's role and the ending of its module's parameter."""
SHOWN = 3
"""Names in a sentence."""

Names = Callable[[str], Iterable[str]]
"""Function from a module's name in diffusers to its other names."""
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Change:
    """Addition to one parameter: up @ down * alpha / rank, and `difference`; tensors of the file by name."""

    parameter: str
    up: str | None = None
    down: str | None = None
    alpha: str | None = None
    difference: str | None = None

    def violation(self, shapes: Mapping[str, Shape], wanted: Shape) -> str | None:
        """Reason why the file's tensors do not make a sum of the shape `wanted`; None when they do."""
        if (self.up is None) != (self.down is None) or not (self.up or self.difference):
            return f"{self.parameter} has {', '.join(sorted(self._names))} alone"
        found = [shapes[self.difference]] if self.difference else []
        if self.up and self.down:
            up, down = shapes[self.up], shapes[self.down]
            fits = len(up) > 1 and len(down) > 1 and prod(up[1:]) == down[0]
            found.append((*up[:1], *down[1:]) if fits else up)
        if self.alpha and prod(shapes[self.alpha]) != 1:
            found.append(shapes[self.alpha])
        wrong = [shape for shape in found if (shape[:1], prod(shape)) != (wanted[:1], prod(wanted))]
        return f"{self.parameter} takes {list(wanted)}, found {list(wrong[0])}" if wrong else None

    def sum(self, read: Callable[[str], torch.Tensor], shape: Shape) -> torch.Tensor | float:
        """Sum to add at strength 1, float32 of that shape."""
        total = read(self.difference).float().reshape(shape) if self.difference else 0.0
        if self.up and self.down:
            up, down = (read(name).float().flatten(1) for name in (self.up, self.down))
            scale = float(read(self.alpha)) / len(down) if self.alpha else 1.0
            total = total + scale * (up @ down).reshape(shape)
        return total

    @property
    def _names(self) -> set[str]:
        return {name for name in (self.up, self.down, self.alpha, self.difference) if name}


@dataclass(frozen=True, eq=False)
class Adapter(Digested):
    """A checked file, its strength, and its changes to each part of a checkpoint."""

    path: Path
    strength: float
    denoisers: tuple[str, ...]
    """Components that the file was opened for, among those that run at a step."""
    changes: Mapping[str, tuple[Change, ...]]

    @property
    def pieces(self) -> list[Piece]:
        """The strength and the file's bytes."""
        return [repr(float(self.strength)), self.path]

    @property
    def summary(self) -> str:
        """Line on the tensors that the adapter changes, by part."""
        counts = [f"{len(changes)} tensors of {part}" for part, changes in self.changes.items()]
        return f"{self.path.name} at {self.strength:g}: {', '.join(counts)}"


class Merge:
    """Additions of some LoRAs to the tensors of one part, in the layout of its files, before the cast."""

    def __init__(self, part: str, adapters: Sequence[Adapter]) -> None:
        self._part, self._adapters = part, adapters
        self._files = ExitStack()
        self._changes: dict[str, list[tuple[Adapter, Change, Callable[[str], torch.Tensor]]]] = defaultdict(list)

    def __enter__(self) -> Merge:
        """Opens the LoRAs; raises CheckpointError for one that cannot be read any more."""
        from safetensors import SafetensorError, safe_open

        for adapter in self._adapters:
            try:
                stream = self._files.enter_context(safe_open(adapter.path, framework="pt"))
            except (SafetensorError, OSError) as error:
                self._files.close()
                raise CheckpointError(f"The LoRA {adapter.path} cannot be read any more: {error}.") from error
            for change in adapter.changes[self._part]:
                self._changes[plain_name(change.parameter)].append((adapter, change, stream.get_tensor))
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def changes(self, name: str) -> bool:
        """Whether something is added to the tensor of that name."""
        return plain_name(name) in self._changes

    def cast(self, name: str, stored: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The stored tensor with its additions, which are summed in fp32, so that the result is rounded once.

        Raises CheckpointError when a file cannot be read any more, or a value does not stay finite.
        """
        from safetensors import SafetensorError

        added = self._changes.get(plain_name(name), ())
        found = stored.float() if added else stored
        for adapter, change, read in added:
            try:
                found = found + adapter.strength * change.sum(read, tuple(stored.shape))
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"The LoRA {adapter.path} cannot be read any more: {error}.") from error
        found = found.to(dtype)
        if added and not bool(found.isfinite().all()):
            loras = " and ".join(f"{adapter.path} at strength {adapter.strength:g}" for adapter, *_ in added)
            raise CheckpointError(f"Expected the LoRA {loras} to leave finite numbers, found others in {name}.")
        return found


class _Places:
    """Parameters of a part by the modules' names in files."""

    def __init__(self, part: Part, names: Names) -> None:
        self.shapes = tensor_shapes(next(iter(part.weights.values())))
        modules = dict.fromkeys(re.sub(r"\.(weight|bias)$", "", name) for name in self.shapes)
        self._modules = {plain_name(name): module for module in modules for name in (module, *names(module))}

    def parameter(self, module: str, suffix: str) -> str | None:
        """The parameter of a module, or the one that itself has that name."""
        found = self._modules.get(plain_name(module), "")
        return next((name for name in (found + suffix, found) if name in self.shapes), None)


def plain_name(name: str) -> str:
    """Common form of a name over all kinds of files; the prefix of CLIP's text model differs by version."""
    return re.sub(r"^text_model_", "", name.replace(".", "_"))


def open_adapter(
    path: Path, strength: float, denoisers: Mapping[str, Part], text: Part | None, names: Names
) -> Adapter:
    """Finds out where each tensor of a file belongs; reads names and shapes alone.

    `denoisers` are the parts to merge into, by the components that run at a step; `text` is the text encoder. Raises
    InputError for a strength out of range; CheckpointError, with names, for a file that does not fit.
    """
    check_number("The strength of a LoRA is", strength, -MOST_STRENGTH, MOST_STRENGTH)
    shapes = tensor_shapes((path,))
    places = {part.name: _Places(part, names) for part in (*denoisers.values(), *([text] if text else []))}
    roles: dict[str, dict[str, dict[str, str]]] = {name: defaultdict(dict) for name in places}
    denoiser_names = [part.name for part in denoisers.values()]
    # A file that names a later expert keeps the two apart; any other goes into both.
    apart = any(key.startswith(f"{part}.") for part in denoiser_names[1:] for key in shapes)
    unknown = []
    for key in shapes:
        stem, role, suffix = _role(key)
        owners = _owners(stem, denoiser_names, apart, text)
        found = [(part, name) for part, rest in owners if (name := places[part].parameter(rest, suffix))]
        if not found or len(found) < len(owners) or any(role in roles[part][name] for part, name in found):
            unknown.append(key)
        for part, name in found:
            roles[part][name][role] = key
    where = " or ".join(places)
    _refuse(path, where, [f"{key} belongs nowhere" for key in unknown], len(shapes))
    changes = {part: tuple(Change(name, **keys) for name, keys in each.items()) for part, each in roles.items() if each}
    violations = (
        each.violation(shapes, places[part].shapes[each.parameter]) for part in changes for each in changes[part]
    )
    _refuse(path, where, [violation for violation in violations if violation], len(shapes))
    return Adapter(path, strength, tuple(denoisers), changes)


def _role(key: str) -> tuple[str, str, str]:
    """Module, role and parameter ending by a tensor's name; all empty for a tensor that is no LoRA's."""
    for pattern, role, suffix in ROLES:
        if match := pattern.search(key):
            return key[: match.start()].removeprefix("base_model.model."), role, suffix
    return "", "", ""


def _owners(stem: str, denoisers: Sequence[str], apart: bool, text: Part | None) -> list[tuple[str, str]]:
    """The parts that a module belongs to, each with the module's name there; `apart` if it names the part itself."""
    for prefix in TEXT:
        if stem.startswith(prefix):
            return [(text.name, stem.removeprefix(prefix))] if text else []
    if apart:
        return [(part, stem.removeprefix(f"{part}.")) for part in denoisers if stem.startswith(f"{part}.")]
    rest = next((stem.removeprefix(prefix) for prefix in DENOISER if stem.startswith(prefix)), stem)
    return [(part, rest) for part in denoisers]


def _refuse(path: Path, where: str, reasons: Sequence[str], count: int) -> None:
    if reasons:
        more = f" and {len(reasons) - SHOWN} more" if len(reasons) > SHOWN else ""
        raise CheckpointError(
            f"Expected all {count} tensors of the LoRA {path.name} to fit {where}, found: "
            f"{'; '.join(reason[:200] for reason in reasons[:SHOWN])}{more}."
        )
