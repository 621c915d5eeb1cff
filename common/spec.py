"""Frozen data on networks, on the shapes that engines serve, and on the targets that engines run on.

Dimensions are named (`batch`, `frames`, `latent_height`, ...), so that one table describes a tensor at every size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from .errors import EngineError, InputError
from .shapes import ShapeProfile, profile_from_dict

if TYPE_CHECKING:
    import torch

COMPUTE = "compute"
"""The dtype name of a tensor that has the engine's own precision."""

PRECISIONS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""Precision names as users see them, and the torch dtype of each."""

QUANTIZED = ("int8", "fp8")
"""Precisions of an engine's products and convolutions: the rest computes in fp16, inputs and outputs are fp32."""


ROUNDING = "fp8_"
"""What the names of rewrites that round a network's products begin with."""


def network_precision(precision: str) -> str:
    """The precision of the network that an engine of that precision is made from and compared with."""
    return "fp32" if precision in QUANTIZED else precision


def rounds(rewrites: Iterable[str]) -> bool:
    """Whether one of the rewrites rounds a network's products: all others change nothing but the time."""
    return any(name.startswith(ROUNDING) for name in rewrites)


class Scope(str, Enum):
    """Frequency at which an input changes: once per clip, once per schedule, or at every step."""

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
    distribution. With a `scene` it draws a smooth picture from 0 to 1 in place of independent values, shifted by so
    many pixels (x, y): a network that looks for motion answers noise with noise.
    """

    name: str
    dims: tuple[str | int, ...]
    dtype: str = COMPUTE
    scope: Scope = Scope.STEP
    guidance: Guidance = Guidance.SHARED
    span: tuple[float, float] | None = None
    scene: tuple[int, int] | None = None

    @property
    def is_timestep(self) -> bool:
        """Whether the tensor is a timestep: an input that changes at every step and whose values have bounds."""
        return self.scope is Scope.STEP and self.span is not None

    def dtype_at(self, precision: str) -> str:
        """The torch dtype name of this tensor in an engine of the given precision."""
        return PRECISIONS[network_precision(precision)] if self.dtype == COMPUTE else self.dtype

    def shape_at(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape of this tensor once every named dimension has a size."""
        return tuple(_size(dim, sizes) for dim in self.dims)

    def read_sizes(self, shape: tuple[int, ...], sizes: dict[str, int]) -> bool:
        """Adds the named dimensions' sizes in `shape` to `sizes`; False when the two disagree."""
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
class NetworkSpec:
    """Identity of a network: family, component, configuration, weights, tensors, and shapes that the network takes."""

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
    """Specification of an engine: a network, a shape profile and a precision.

    `rewrites` holds the sorted names of the rewrites that the network was built with.
    """

    network: NetworkSpec
    profile: ShapeProfile
    precision: str
    rewrites: tuple[str, ...] = ()
    calibration: str = ""
    """Name of the recorded inputs that a quantized engine's scales were taken from."""

    @property
    def holds_weights(self) -> bool:
        """Whether the engine holds its network's weights; one that does not serves any weights of the network."""
        return bool(self.network.weights_sha256)

    @property
    def products(self) -> str:
        """The precision of the engine's products: fp8 where a rewrite rounds them."""
        return "fp8" if rounds(self.rewrites) else self.precision

    def __post_init__(self) -> None:
        object.__setattr__(self, "rewrites", tuple(sorted(set(self.rewrites))))
        known = (*PRECISIONS, *QUANTIZED)
        if self.precision not in known:
            raise InputError(f"Precision is one of {', '.join(known)}, found {self.precision!r}.")


@dataclass(frozen=True)
class Target:
    """Target that an engine was built for: any other value makes another engine."""

    backend: str
    backend_version: str
    device: str
    arch: str
    exporter: str = ""


def named_network(network: NetworkSpec) -> dict[str, Any]:
    """The specification as names are made of it: tensors without a scene have the names from before there were any."""
    named = asdict(network)
    for tensor in (*named["inputs"], *named["outputs"]):
        if tensor["scene"] is None:
            del tensor["scene"]
    return named


def spec_from_dict(data: dict[str, Any]) -> EngineSpec:
    """Rebuilds an EngineSpec from `dataclasses.asdict` after JSON; raises EngineError on anything else."""
    try:
        network = dict(data["network"])
        for side in ("inputs", "outputs"):
            network[side] = tuple(_tensor_from_dict(tensor) for tensor in network[side])
        network["limits"] = profile_from_dict(network["limits"])
        profile = profile_from_dict(data["profile"])
        rewrites, calibration = tuple(data.get("rewrites", ())), data.get("calibration", "")
        return EngineSpec(NetworkSpec(**network), profile, data["precision"], rewrites, calibration)
    except (LookupError, TypeError, ValueError, AttributeError, InputError) as error:
        raise EngineError(f"An engine specification is malformed: {error}.") from error


def _tensor_from_dict(data: dict[str, Any]) -> TensorSpec:
    span, scene = data["span"], data.get("scene")
    return TensorSpec(
        name=data["name"],
        dims=tuple(data["dims"]),
        dtype=data["dtype"],
        scope=Scope(data["scope"]),
        guidance=Guidance(data["guidance"]),
        span=None if span is None else (span[0], span[1]),
        scene=None if scene is None else (scene[0], scene[1]),
    )
