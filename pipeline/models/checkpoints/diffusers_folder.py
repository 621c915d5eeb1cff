"""A model folder in the published diffusers layout, checked before any of it is loaded.

Every refusal names the file, what was expected and what was found. Weights are safetensors only: a pickle
would run code.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ....common.errors import CheckpointError
from .file_digests import Digested, Piece, WholeFile

INDEX = "model_index.json"
PICKLES = {".bin", ".ckpt", ".pt", ".pth", ".pkl"}
_MAX_JSON_BYTES = 64 << 20
_VARIANTS = {"": "", "fp16": ".fp16", "bf16": ".bf16"}
"""By the suffix of its files."""
_PREFERRED = {"fp32": ("", "fp16", "bf16"), "fp16": ("fp16", "", "bf16"), "bf16": ("bf16", "fp16", "")}
"""Variants to read for a precision, the best first: its own, then those that lose least and are least to read."""
TOKENIZERS = ("tokenizer.json", "spiece.model")
"""Files of which each is a whole tokenizer."""
LINK = "weights.json"
"""In a part's folder: the file in another layout that its weights lie in."""
LINKED = ("__i2v_tensorrt", "single_files")
"""Where links count: a checkpoint from anywhere else leads to no file outside itself."""
_VOCABULARY = ("vocab.json", "merges.txt")
_KINDS = {int: "a whole number above 0", float: "a number above 0", list: "a list of numbers", str: "a list of texts"}
CONFIG_NAMES = {
    "scheduler": "scheduler_config.json",
    "tokenizer": "tokenizer_config.json",
    "feature_extractor": "preprocessor_config.json",
    "image_processor": "preprocessor_config.json",
}
"""Of parts that are no networks."""


@dataclass(frozen=True)
class BlockList:
    """A network's list of equal blocks: its path in the network, and the configuration's name of its length."""

    path: str
    count: str


@dataclass(frozen=True)
class Part(Digested):
    """One component of a checkpoint: its folder, its configuration, and its weight files by variant."""

    name: str
    folder: Path
    config: Mapping[str, Any]
    weights: Mapping[str, tuple[Path, ...]]
    class_name: str = ""
    """The library class that model_index.json names."""
    linked: Mapping[str, tuple[int, ...]] | None = None
    """Shapes of the tensors where the one file of the weights is in another layout, by their names in diffusers."""
    first_blocks: tuple[str, int] | None = None
    """Path of a list of blocks, and how many of them count; the others' weights are left out."""

    def with_blocks(self, blocks: BlockList, count: int) -> Part:
        """The part with the first `count` of its blocks."""
        return replace(self, config={**self.config, blocks.count: count}, first_blocks=(blocks.path, count))

    def keeps(self, name: str) -> bool:
        """Whether the tensor of that name belongs to the part."""
        if self.first_blocks is None:
            return True
        path, count = self.first_blocks
        found = re.match(rf"{re.escape(path)}\.(\d+)\.", name)
        return found is None or int(found[1]) < count

    @property
    def config_path(self) -> Path:
        """The file that the configuration is read from."""
        return self.folder / CONFIG_NAMES.get(self.name, "config.json")

    @property
    def has_network(self) -> bool:
        """Whether the part is a network, which needs weights."""
        return self.name not in CONFIG_NAMES

    def variant_for(self, precision: str) -> str | None:
        """Stored variant to read for a precision; None for the files without a variant's name."""
        return next((name for name in _PREFERRED[precision] if name in self.weights), "") or None

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of each tensor of the weights by its name; none for a part without weights."""
        found = tensor_shapes(next(iter(self.weights.values()), ())) if self.linked is None else self.linked
        return {name: shape for name, shape in found.items() if self.keeps(name)}

    @property
    def elements(self) -> int:
        """Number of elements of the weights; 0 for a part without weights."""
        return sum(map(math.prod, self.shapes.values()))

    @property
    def config_sha256(self) -> str:
        """Digest of the configuration."""
        return hashlib.sha256(json.dumps(self.config, sort_keys=True).encode()).hexdigest()

    @property
    def digested(self) -> Digested:
        """What is read for the digest: the part, or a file that several parts lie in, once for all."""
        is_linked = self.linked is not None and self.weights
        return WholeFile(self.weights[""][0]) if is_linked else self

    @cached_property
    def sha256(self) -> str:
        if self.digested is self:
            return super().sha256
        return hashlib.sha256(f"{self.name} {self.config_sha256} {self.digested.sha256}".encode()).hexdigest()

    @property
    def pieces(self) -> list[Piece]:
        """The configuration, and the name and the bytes of every weight or vocabulary file."""
        weights = [path for paths in self.weights.values() for path in paths]
        files = (path for path in self.folder.glob("*") if path.is_file())
        paths = weights or sorted(files, key=lambda path: path.name)  # Windows sorts paths without regard to case
        return [self.config_sha256, *(piece for path in paths for piece in (path.name, path))]


@dataclass(frozen=True)
class Checkpoint:
    """A checked model folder."""

    folder: Path
    parts: Mapping[str, Part]
    index: Mapping[str, Any] = field(default_factory=dict)
    """Content of model_index.json."""

    @property
    def has_weights(self) -> bool:
        """False for configurations alone."""
        return any(part.weights for part in self.parts.values())

    def require_weights(self) -> None:
        """Raises CheckpointError, naming the first missing file, for configurations alone."""
        if not self.has_weights:
            raise _missing_weights(next(part for part in self.parts.values() if part.has_network))

    def without_weights(self) -> Checkpoint:
        """The configurations alone."""
        return replace(self, parts={name: replace(part, weights={}) for name, part in self.parts.items()})


def read_index(folder: Path) -> Mapping[str, Any]:
    """Content of the folder's model_index.json; raises CheckpointError for a missing file, or for no JSON object."""
    if not folder.is_dir():
        raise CheckpointError(f"Expected a model folder at {folder}, found nothing there.")
    return read_json(folder / INDEX)


def pipeline_class(folder: Path) -> str:
    """The pipeline class that the folder's model_index.json names.

    Raises CheckpointError when there is no such file, or nothing sensible in it.
    """
    name = read_index(folder).get("_class_name")
    if not isinstance(name, str):
        raise CheckpointError(f"{folder / INDEX} names no pipeline class, expected a text under _class_name.")
    return name


def open_checkpoint(
    folder: Path, expected: Mapping[str, tuple[str, ...]], settings: Mapping[str, Mapping[str, type]]
) -> Checkpoint:
    """Checks every part of the folder against `expected`: part name to the accepted class names.

    All networks have weights, or none has: then there are configurations alone.

    `settings` are those that a part's configuration cannot do without, each a positive number (`int`,
    `float`), numbers (`list`) or texts (`str`). Raises CheckpointError.
    """
    index = read_json(folder / INDEX)
    for name, classes in expected.items():
        entry = index.get(name)
        found = entry[1] if isinstance(entry, list) and len(entry) == 2 else entry
        if found not in classes:
            raise CheckpointError(f"{folder / INDEX}: expected {name} to be {' or '.join(classes)}, found {found}.")
    parts = {name: replace(_open_part(folder / name), class_name=index[name][1]) for name in expected}
    without = [part for part in parts.values() if part.has_network and not part.weights]
    if without and any(part.weights for part in parts.values()):
        raise _missing_weights(without[0])
    for name, kinds in settings.items():
        check_settings(parts[name], kinds)
    return Checkpoint(folder, parts, index)


def _open_part(folder: Path) -> Part:
    if not folder.is_dir():
        raise CheckpointError(f"Expected the folder {folder}, found nothing there.")
    link = folder / LINK
    linked = read_link(link) if folder.parent.parent.parts[-2:] == LINKED and link.is_file() else None
    weights = {} if folder.name in CONFIG_NAMES else {"": (linked.file,)} if linked else _find_weights(folder)
    for paths in weights.values():
        tensor_shapes(paths)
    part = Part(folder.name, folder, {}, weights, linked=linked.shapes if linked else None)
    if folder.name == "tokenizer":
        _check_vocabulary(folder)
        if not part.config_path.is_file():
            return part  # every other part is useless without its configuration
    return replace(part, config=read_json(part.config_path))


def _check_vocabulary(folder: Path) -> None:
    """Raises CheckpointError for missing vocabulary files: transformers silently makes a tokenizer without a word."""
    if not any((folder / name).is_file() for name in TOKENIZERS):
        for name in _VOCABULARY:
            _check_is_file(folder / name)


def check_settings(part: Part, kinds: Mapping[str, type]) -> None:
    """Raises CheckpointError where a part's configuration lacks one of these settings or has another type."""
    for name, kind in kinds.items():
        found: Any = part.config.get(name)
        if kind in (list, str):
            items = (int, float) if kind is list else (str,)
            fits = isinstance(found, list) and bool(found) and all(type(value) in items for value in found)
        else:
            fits = type(found) in (int, kind) and found > 0
        if not fits:
            raise CheckpointError(
                f"{part.config_path}: expected {name} to be {_KINDS[kind]}, found {repr(found)[:80]}."
            )


def _check_is_file(path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(f"Expected the file {path}, found nothing there.")


@dataclass(frozen=True)
class Link:
    """Content of a `LINK`: a file in another layout, and the shapes of the part's tensors by their names here."""

    file: Path
    shapes: Mapping[str, tuple[int, ...]]

    def to_json(self) -> dict[str, Any]:
        """The content as JSON."""
        return {"file": str(self.file), "shapes": {name: list(shape) for name, shape in self.shapes.items()}}


def read_link(path: Path) -> Link:
    """Content of a `LINK`; raises CheckpointError for anything else."""
    found = read_json(path)
    file, shapes = found.get("file"), found.get("shapes")
    if not isinstance(file, str) or not isinstance(shapes, dict) or not all(map(_is_shape, shapes.values())):
        raise CheckpointError(f"{path}: expected a file and the shapes of its tensors, found {str(found)[:80]}.")
    return Link(Path(file), {name: tuple(shape) for name, shape in shapes.items()})


def _is_shape(value: object) -> bool:
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a small JSON file; raises CheckpointError."""
    _check_is_file(path)
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise CheckpointError(f"{path} has {path.stat().st_size} bytes, expected a small JSON file.")
    try:
        data = json.loads(path.read_text("utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{path} is not readable JSON: {error}.") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found a {type(data).__name__}.")
    return data


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it names {next(name for name in names if names.count(name) > 1)} twice")
    return data


def _find_weights(folder: Path) -> dict[str, tuple[Path, ...]]:
    """Weight files by variant ("" is full precision), none for a configuration alone; an index leads to shards.

    A single file beside shards counts too: which of them is loaded is the library's affair.
    """
    found: dict[str, tuple[Path, ...]] = {}
    for variant, suffix in _VARIANTS.items():
        single, index = folder / f"{stem_of(folder)}{suffix}.safetensors", _index(folder, suffix)
        shards = _shards(index) if index.is_file() else ()
        paths = ((single,) if single.is_file() else ()) + shards
        if any(path.is_file() for path in paths):
            _check_shards(index, shards)
            found[variant] = paths
    if found:
        return found
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles:
        raise CheckpointError(f"{folder / pickles[0]} is a pickle, which can run code: expected a .safetensors file.")
    return {}


def stem_of(folder: Path) -> str:
    """Beginning of the names of the weight files in a part's folder."""
    return "model" if folder.name.endswith("encoder") else "diffusion_pytorch_model"


def _index(folder: Path, suffix: str) -> Path:
    return folder / f"{stem_of(folder)}.safetensors.index{suffix}.json"


def _missing_weights(part: Part) -> CheckpointError:
    """Error that names the first file that is missing of a part without any weights."""
    for index in (_index(part.folder, suffix) for suffix in _VARIANTS.values()):
        if index.is_file():
            return _missing_shard(index, _shards(index)[0])
    return CheckpointError(f"Expected the file {part.folder / stem_of(part.folder)}.safetensors, found nothing there.")


def _shards(index: Path) -> tuple[Path, ...]:
    weight_map = read_json(index).get("weight_map")
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise CheckpointError(f"{index}: expected a weight_map to file names in the same folder.")
    return tuple(index.parent / name for name in sorted(set(names)))


def _check_shards(index: Path, shards: Sequence[Path]) -> None:
    for shard in shards:
        if not shard.is_file():
            raise _missing_shard(index, shard)


def _missing_shard(index: Path, shard: Path) -> CheckpointError:
    return CheckpointError(f"{index} lists {shard.name}, expected that file beside it, found nothing.")


def tensor_shapes(paths: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor in some safetensors files by its name, read off their headers alone.

    Raises CheckpointError for a file that is missing, not whole or empty; safetensors itself checks that a header
    covers its file without gap or overlap.
    """
    from safetensors import SafetensorError, safe_open

    found: dict[str, tuple[int, ...]] = {}
    for path in paths:
        _check_is_file(path)
        try:
            with safe_open(path, framework="pt") as stream:
                shapes = {name: tuple(stream.get_slice(name).get_shape()) for name in stream.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path} is truncated or not a safetensors file ({error}): expected a complete one, "
                f"found {path.stat().st_size} bytes."
            ) from error
        if not shapes:
            raise CheckpointError(f"{path} holds no tensors.")
        found.update(shapes)
    return found
