"""What a network is, which shapes an engine serves, and where it runs: plain frozen data.

A leaf that every room may import; it imports nothing of the pack but the errors. Dimensions are named
(`batch`, `frames`, `latent_height`, ...), so that one table describes a tensor at every size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Any

from .errors import EngineError, InputError

if TYPE_CHECKING:
    import torch

COMPUTE = "compute"
"""The dtype name of a tensor that has the engine's own precision."""

PRECISIONS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""Precision names as users see them, and the torch dtype that each stands for."""

QUANTIZED = ("int8", "fp8")
"""Precisions of an engine's products and convolutions: the rest computes in fp16, what goes in and out is fp32."""


def network_precision(precision: str) -> str:
    """The precision of the network that an engine of that precision is made from and compared with."""
    return "fp32" if precision in QUANTIZED else precision



class Scope(str, Enum):
    """How often an input changes: once per clip, once per schedule, or at every step."""

    CLIP = "clip"
    SCHEDULE = "schedule"
    STEP = "step"


class Guidance(str, Enum):
    """Whether the unconditional and the conditional branch see different values of an input."""

    PER_BRANCH = "per_branch"
    SHARED = "shared"


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a network.

    `dims` holds fixed sizes, names of dynamic dimensions, and multiples of those (`latent_height*8`).
    `span` is the half-open interval that verification draws values from; None means a standard normal
    distribution.
    """

    name: str
    dims: tuple[str | int, ...]
    dtype: str = COMPUTE
    scope: Scope = Scope.STEP
    guidance: Guidance = Guidance.SHARED
    span: tuple[float, float] | None = None

    @property
    def is_timestep(self) -> bool:
        """Whether it says where in the schedule a step lies: it changes at every step, and its values have bounds."""
        return self.scope is Scope.STEP and self.span is not None

    def dtype_at(self, precision: str) -> str:
        """The torch dtype name of this tensor in an engine of the given precision."""
        return PRECISIONS[network_precision(precision)] if self.dtype == COMPUTE else self.dtype

    def shape_at(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape of this tensor once every named dimension has a size."""
        return tuple(_size(dim, sizes) for dim in self.dims)

    def read_sizes(self, shape: tuple[int, ...], sizes: dict[str, int]) -> bool:
        """Adds to `sizes` what `shape` says of the named dimensions; False when the two disagree."""
        return len(shape) == len(self.dims) and all(
            size == dim if isinstance(dim, int) else _read(dim, size, sizes)
            for dim, size in zip(self.dims, shape, strict=True)
        )


def split_dim(dim: str) -> tuple[str, int]:
    """`latent_height*8` as its name and its factor; the factor of a plain name is 1."""
    name, _, factor = dim.partition("*")
    return name, int(factor or 1)


def _size(dim: str | int, sizes: Mapping[str, int]) -> int:
    if isinstance(dim, int):
        return dim
    name, factor = split_dim(dim)
    return sizes[name] * factor


def _read(dim: str, size: int, sizes: dict[str, int]) -> bool:
    name, factor = split_dim(dim)
    return size % factor == 0 and sizes.setdefault(name, size // factor) == size // factor


@dataclass(frozen=True)
class DimRange:
    """The sizes that one dimension may take: multiples of `multiple` from `min` to `max`, tuned for `opt`."""

    min: int
    opt: int
    max: int
    multiple: int = 1

    def misfit(self, size: int) -> str | None:
        """Why `size` lies outside, and by how much; None when it fits."""
        if size < self.min:
            return f"is {size}, {self.min - size} below the smallest supported {self.min}"
        if size > self.max:
            return f"is {size}, {size - self.max} above the largest supported {self.max}"
        if size % self.multiple:
            return f"is {size}, {size % self.multiple} more than a multiple of {self.multiple}"
        return None

    def distance(self, size: int) -> int:
        """By how much `size` lies outside; 0 when it fits."""
        return max(self.min - size, size - self.max, 0) or size % self.multiple

    def above(self, count: int) -> int:
        """The size `count` multiples above the smallest, or the largest if that comes first."""
        smallest = -(-self.min // self.multiple) * self.multiple
        return min(smallest + count * self.multiple, self.max // self.multiple * self.multiple)


@dataclass(frozen=True)
class ShapeProfile:
    """A range for each named dimension of a network."""

    ranges: Mapping[str, DimRange] = field(default_factory=dict)

    def misfits(self, sizes: Mapping[str, int]) -> list[str]:
        """One phrase for each dimension of `sizes` that does not fit; empty when all fit."""
        found = ((name, self.ranges[name].misfit(size)) for name, size in sizes.items() if name in self.ranges)
        return [f"{name} {reason}" for name, reason in found if reason]

    def fits(self, sizes: Mapping[str, int]) -> bool:
        """True when every dimension of `sizes` lies in its range."""
        return not self.misfits(sizes)

    def distance(self, sizes: Mapping[str, int]) -> tuple[int, int]:
        """How far `sizes` lie outside: in how many dimensions, and by how much in all."""
        found = [self.ranges[name].distance(size) for name, size in sizes.items() if name in self.ranges]
        return sum(each > 0 for each in found), sum(found)

    def exact(self, sizes: Mapping[str, int]) -> ShapeProfile:
        """The profile that serves `sizes` alone; dimensions that `sizes` does not name keep their range."""
        fixed = {
            name: DimRange(sizes[name], sizes[name], sizes[name]) if name in sizes else limits
            for name, limits in self.ranges.items()
        }
        return ShapeProfile(fixed)

    def tuned_for(self, sizes: Mapping[str, int]) -> ShapeProfile:
        """This profile with `sizes` as its optimum."""
        tuned = {name: replace(limits, opt=sizes.get(name, limits.opt)) for name, limits in self.ranges.items()}
        return ShapeProfile(tuned)

    @property
    def profiles(self) -> tuple[ShapeProfile, ...]:
        """The ranges that an engine is tuned for one by one: this one alone, or the presets."""
        return (self,)

    @property
    def optimum(self) -> dict[str, int]:
        """The sizes that an engine is tuned for."""
        return {name: limits.opt for name, limits in self.ranges.items()}

    @property
    def corners(self) -> list[dict[str, int]]:
        """What verification runs: the smallest sizes, uneven ones above, the tuned ones; without duplicates.

        The uneven ones show what a single item or a square would hide, such as swapped branches or sides.
        """
        smallest = {name: limits.above(0) for name, limits in self.ranges.items()}
        uneven = {name: limits.above(number) for number, (name, limits) in enumerate(self.ranges.items(), 1)}
        found = [smallest, uneven, self.optimum]
        return [sizes for number, sizes in enumerate(found) if sizes not in found[:number]]

    @property
    def width(self) -> int:
        """How much more than one shape the profile spans: the product of the ranges' ratios, rounded."""
        ratio = 1.0
        for limits in self.ranges.values():
            ratio *= limits.max / max(limits.min, 1)
        return round(ratio)


@dataclass(frozen=True)
class Presets(ShapeProfile):
    """Several profiles of one engine, over one set of weights; `ranges` spans them, and only they are served.

    Raises InputError for fewer than two, of which one is a profile of its own.
    """

    presets: tuple[ShapeProfile, ...] = ()

    def __post_init__(self) -> None:
        if len(self.presets) < 2:
            raise InputError(f"Presets are two profiles or more, found {len(self.presets)}.")

    @property
    def profiles(self) -> tuple[ShapeProfile, ...]:
        return self.presets

    def misfits(self, sizes: Mapping[str, int]) -> list[str]:
        """Those of the nearest preset."""
        return self._nearest(sizes).misfits(sizes)

    def distance(self, sizes: Mapping[str, int]) -> tuple[int, int]:
        """That of the nearest preset."""
        return self._nearest(sizes).distance(sizes)

    @property
    def corners(self) -> list[dict[str, int]]:
        """Those of every preset, without duplicates."""
        found = [sizes for preset in self.presets for sizes in preset.corners]
        return [sizes for number, sizes in enumerate(found) if sizes not in found[:number]]

    @property
    def width(self) -> int:
        """The sum over the presets: more than one alone, less than a range over them."""
        return sum(preset.width for preset in self.presets)

    def _nearest(self, sizes: Mapping[str, int]) -> ShapeProfile:
        return min(self.presets, key=lambda preset: ShapeProfile.distance(preset, sizes))


def span(presets: Sequence[ShapeProfile], limits: ShapeProfile) -> ShapeProfile:
    """One engine for all of the presets, tuned for the first where it must choose; a single profile if they are equal.

    `limits` are the network's own: sizes between the presets come in its multiples.
    """
    distinct = tuple(preset for number, preset in enumerate(presets) if preset not in presets[:number])
    if len(distinct) == 1:
        return distinct[0]
    ranges = {
        name: replace(
            found,
            min=min(preset.ranges[name].min for preset in distinct),
            opt=distinct[0].ranges[name].opt,
            max=max(preset.ranges[name].max for preset in distinct),
        )
        for name, found in limits.ranges.items()
    }
    return Presets(ranges, distinct)


@dataclass(frozen=True)
class NetworkSpec:
    """A network by what it is: family, component, configuration, weights, tensors, and shapes it can take."""

    family: str
    component: str
    config_sha256: str
    weights_sha256: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    limits: ShapeProfile
    exportable: bool = True
    code: str = ""
    """Digest or versions of the code that makes the network, so that an engine is not older than its code."""

    def sizes_of(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, int]:
        """The size of each named dimension, read off the tensors.

        Raises InputError for a missing or unknown tensor, a wrong rank, or two tensors that disagree.
        """
        names = [tensor.name for tensor in self.inputs]
        if set(inputs) != set(names):
            raise InputError(f"{self.component} expects the tensors {sorted(names)}, found {sorted(inputs)}.")
        sizes: dict[str, int] = {}
        for tensor in self.inputs:
            shape = tuple(inputs[tensor.name].shape)
            if not tensor.read_sizes(shape, sizes):
                raise InputError(
                    f"{self.component} expects {tensor.name} as {list(tensor.dims)} with {sizes}, found {list(shape)}."
                )
        return sizes


@dataclass(frozen=True)
class EngineSpec:
    """What an engine computes: a network, at these shapes, in this precision.

    `rewrites` names, in alphabetical order, the other ways to the same result that the network was made with.
    """

    network: NetworkSpec
    profile: ShapeProfile
    precision: str
    rewrites: tuple[str, ...] = ()
    calibration: str = ""
    """Names the recorded inputs that a quantized engine's scales were taken from."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "rewrites", tuple(sorted(set(self.rewrites))))
        known = (*PRECISIONS, *QUANTIZED)
        if self.precision not in known:
            raise InputError(f"Precision is one of {', '.join(known)}, found {self.precision!r}.")


@dataclass(frozen=True)
class Target:
    """Where an engine was built to run: anything here that changes makes another engine."""

    backend: str
    backend_version: str
    device: str
    arch: str
    exporter: str = ""


def spec_from_dict(data: dict[str, Any]) -> EngineSpec:
    """Rebuilds an EngineSpec from `dataclasses.asdict` after JSON; raises EngineError on anything else."""
    try:
        network = dict(data["network"])
        for side in ("inputs", "outputs"):
            network[side] = tuple(_tensor_from_dict(tensor) for tensor in network[side])
        network["limits"] = _profile_from_dict(network["limits"])
        profile = _profile_from_dict(data["profile"])
        rewrites, calibration = tuple(data.get("rewrites", ())), data.get("calibration", "")
        return EngineSpec(NetworkSpec(**network), profile, data["precision"], rewrites, calibration)
    except (LookupError, TypeError, ValueError, AttributeError, InputError) as error:
        raise EngineError(f"An engine specification is malformed: {error}.") from error


def _tensor_from_dict(data: dict[str, Any]) -> TensorSpec:
    span = data["span"]
    return TensorSpec(
        name=data["name"],
        dims=tuple(data["dims"]),
        dtype=data["dtype"],
        scope=Scope(data["scope"]),
        guidance=Guidance(data["guidance"]),
        span=None if span is None else (span[0], span[1]),
    )


def _profile_from_dict(data: dict[str, Any]) -> ShapeProfile:
    ranges = {name: DimRange(**limits) for name, limits in data["ranges"].items()}
    if "presets" not in data:
        return ShapeProfile(ranges)
    return Presets(ranges, tuple(_profile_from_dict(preset) for preset in data["presets"]))
