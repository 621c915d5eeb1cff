"""LoRA files and their kin, checked against the parts of a checkpoint and merged into their weights.

A file is understood by its tensors' names: those of diffusers and PEFT, of the trainers that write underscores for
dots, and the names that a family's own publishers gave its modules. Tensors for a part that the family's kin has and
this model has not are left out and counted. A file with other tensors of no known module is refused with their names,
for half of an adapter is another adapter.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ....common.errors import CheckpointError
from ....common.validation import check_number
from . import lora_kinds
from .diffusers_folder import Part, tensor_shapes
from .file_digests import Digested, Piece
from .lora_kinds import Shape
from .lora_tensor_names import DENOISER, SECOND_TEXT, TEXT, module_key, plain_name, role_of, unsupported_kind

if TYPE_CHECKING:
    import torch

MOST_STRENGTH = 100.0
SHOWN = 3
"""Names in a sentence."""
TEXT_ENCODER = "text encoder"

Names = Callable[[str], Iterable[str]]
"""Function from a module's name in diffusers to its other names."""
Lacking = Callable[[str], "str | None"]
"""Function from the plain name of a module to the part of the family's kin that it is in; None for any other."""


@dataclass(frozen=True)
class Change:
    """Change to one parameter: the file's tensors that make it, by their roles."""

    parameter: str
    tensors: Mapping[str, str]

    def violation(self, shapes: Mapping[str, Shape], wanted: Shape) -> str | None:
        """Reason why the file's tensors do not change a parameter of the shape `wanted`; None when they do."""
        found = lora_kinds.violation({role: shapes[name] for role, name in self.tensors.items()}, wanted)
        if found == "alone":
            return f"{self.parameter} has {', '.join(sorted(self.tensors.values()))} alone"
        return f"{self.parameter} takes {list(wanted)}, found {found}" if found else None

    def merged(self, weight: torch.Tensor, read: Callable[[str], torch.Tensor], strength: float) -> torch.Tensor:
        """The parameter with this change at a strength; all float32."""
        return lora_kinds.merged(weight, {role: read(name).float() for role, name in self.tensors.items()}, strength)


@dataclass(frozen=True, eq=False)
class Adapter(Digested):
    """A checked file, its strength, and its changes to each part of a checkpoint."""

    path: Path
    strength: float
    denoisers: tuple[str, ...]
    """Components that the file was opened for, among those that run at a step."""
    changes: Mapping[str, tuple[Change, ...]]
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Count of the file's tensors by the part that they are for and that this model does not have."""

    @property
    def pieces(self) -> list[Piece]:
        """The strength and the file's bytes."""
        return [repr(float(self.strength)), self.path]

    @property
    def summary(self) -> str:
        """Line on the tensors that the adapter changes, by part, and on those of the file that are left out."""
        counts = [f"{len(changes)} tensors of {part}" for part, changes in self.changes.items()]
        left = [
            f"; {count} {'tensor' if count == 1 else 'tensors'} for a {part} that this model does not have "
            f"{'is' if count == 1 else 'are'} left out"
            for part, count in self.left_out.items()
        ]
        return f"{self.path.name} at {self.strength:g}: {', '.join(counts)}{''.join(left)}"


class Merge:
    """Changes of some LoRAs to the tensors of one part, in the layout of its files, before the cast."""

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
        """Whether a LoRA changes the tensor of that name."""
        return plain_name(name) in self._changes

    def cast(self, name: str, stored: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The stored tensor with its changes, which are computed in fp32, so that the result is rounded once.

        Raises CheckpointError when a file cannot be read any more, or a value does not stay finite.
        """
        from safetensors import SafetensorError

        added = self._changes.get(plain_name(name), ())
        found = stored.float() if added else stored
        for adapter, change, read in added:
            try:
                found = change.merged(found, read, adapter.strength)
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
        self.shapes = part.shapes
        modules = dict.fromkeys(re.sub(r"\.(weight|bias)$", "", name) for name in self.shapes)
        self.modules = {module_key(name): module for module in modules for name in (module, *names(module))}
        # Diffusers once wrote a LoRA of the layer `to_out.0` as one of `to_out`.
        short = {re.sub(r"_to_out_0$", "_to_out", name): module for name, module in self.modules.items()}
        self.modules = short | self.modules

    def parameter(self, module: str, suffix: str) -> str | None:
        """The parameter of a module, or the one that itself has that name."""
        if not suffix.endswith(("weight", "bias")):
            module, suffix = module + suffix, ""
        found = self.modules.get(module_key(module), "")
        return next((name for name in (found + suffix, found) if name in self.shapes), None)


class _Layout:
    """The parts that a file's tensors may belong to."""

    def __init__(self, denoisers: Sequence[Part], text: Part | None, names: Names, lacking: Lacking) -> None:
        self.places = {part.name: _Places(part, names) for part in (*denoisers, *([text] if text else []))}
        self.denoisers = [part.name for part in denoisers]
        self._text = text.name if text else None
        self._lacking = lacking
        self._has = {lacking(name) for part in self.denoisers for name in self.places[part].modules}

    def keeps_apart(self, keys: Iterable[str]) -> bool:
        """Whether a file names a later expert: then it keeps the experts apart; any other goes into both."""
        return any(key.startswith(f"{part}.") for part in self.denoisers[1:] for key in keys)

    def owners(self, stem: str, apart: bool) -> list[tuple[str, str]]:
        """The parts that a module belongs to, each with the module's name there; `apart` if it names the part."""
        if match := TEXT.match(stem):
            return [(self._text, stem[match.end() :])] if self._text else []
        if SECOND_TEXT.match(stem):
            return []
        if apart:
            return [(part, stem.removeprefix(f"{part}.")) for part in self.denoisers if stem.startswith(f"{part}.")]
        return [(part, DENOISER.sub("", stem)) for part in self.denoisers]

    def lacks(self, stem: str, owners: Sequence[tuple[str, str]]) -> str | None:
        """The part of the family's kin that a module is in and this model does not have; None for any other module."""
        if SECOND_TEXT.match(stem) or (TEXT.match(stem) and not self._text):
            return TEXT_ENCODER
        found = {self._lacking(module_key(rest)) for part, rest in owners if part != self._text}
        return found.pop() if len(found) == 1 and not found & self._has else None


def open_adapter(
    path: Path, strength: float, denoisers: Mapping[str, Part], text: Part | None, names: Names, lacking: Lacking
) -> Adapter:
    """Finds out where each tensor of a file belongs; reads names and shapes alone.

    `denoisers` are the parts to merge into, by the components that run at a step; `text` is the text encoder;
    `lacking` names the part of a kindred model that a module is in. Raises InputError for a strength out of range;
    CheckpointError, with names, for a file that does not fit, and for one with nothing for this model.
    """
    check_number("The strength of a LoRA is", strength, -MOST_STRENGTH, MOST_STRENGTH)
    shapes = tensor_shapes((path,))
    _refuse_kinds(path, shapes)
    layout = _Layout(list(denoisers.values()), text, names, lacking)
    roles, left_out, unknown = _sorted_out(layout, list(shapes))
    where = " or ".join(layout.places)
    if not any(roles.values()) and left_out:
        unknown += [f"nothing but tensors for a {part}" for part in left_out]
    _refuse(path, where, unknown, len(shapes))
    changes = {part: tuple(Change(name, keys) for name, keys in each.items()) for part, each in roles.items() if each}
    violations = (
        each.violation(shapes, layout.places[part].shapes[each.parameter]) for part in changes for each in changes[part]
    )
    _refuse(path, where, [violation for violation in violations if violation], len(shapes))
    return Adapter(path, strength, tuple(denoisers), changes, left_out)


def _sorted_out(
    layout: _Layout, keys: Sequence[str]
) -> tuple[dict[str, dict[str, dict[str, str]]], Counter[str], list[str]]:
    """Tensor names by part, parameter and role; counts of those left out; reasons why others belong nowhere."""
    roles: dict[str, dict[str, dict[str, str]]] = {name: defaultdict(dict) for name in layout.places}
    left_out, unknown, apart = Counter[str](), [], layout.keeps_apart(keys)
    for key in keys:
        stem, role, suffix = role_of(key)
        owners = layout.owners(stem, apart)
        found = [(part, name) for part, rest in owners if (name := layout.places[part].parameter(rest, suffix))]
        if not found and role and (lacking := layout.lacks(stem, owners)):
            left_out[lacking] += 1
        elif not found or len(found) < len(owners) or any(role in roles[part][name] for part, name in found):
            unknown.append(f"{key} belongs nowhere")
        for part, name in found:
            roles[part][name][role] = key
    return roles, left_out, unknown


def _refuse_kinds(path: Path, keys: Iterable[str]) -> None:
    """Raises CheckpointError, with the kind's name, for an adapter of a kind that is not merged."""
    for key in keys:
        if kind := unsupported_kind(key):
            raise CheckpointError(
                f"The LoRA {path.name} is of the kind {kind}, which is not merged: expected LoRA, LoCon, LoHa, LoKr, "
                f"GLoRA, OFT, DoRA by dora_scale, or differences, found {key[:200]}."
            )


def _refuse(path: Path, where: str, reasons: Sequence[str], count: int) -> None:
    if reasons:
        more = f" and {len(reasons) - SHOWN} more" if len(reasons) > SHOWN else ""
        raise CheckpointError(
            f"Expected all {count} tensors of the LoRA {path.name} to fit {where}, found: "
            f"{'; '.join(reason[:200] for reason in reasons[:SHOWN])}{more}."
        )
