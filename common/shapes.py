"""Ranges of the sizes that a network takes and an engine serves, one for each named dimension."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .errors import InputError


@dataclass(frozen=True)
class DimRange:
    """The sizes that one dimension may take: multiples of `multiple` from `min` to `max`, tuned for `opt`."""

    min: int
    opt: int
    max: int
    multiple: int = 1

    def violation(self, size: int) -> str | None:
        """Reason why `size` is outside the range, with the difference; None when `size` fits."""
        if size < self.min:
            return f"is {size}, {self.min - size} below the smallest supported {self.min}"
        if size > self.max:
            return f"is {size}, {size - self.max} above the largest supported {self.max}"
        if size % self.multiple:
            return f"is {size}, {size % self.multiple} more than a multiple of {self.multiple}"
        return None

    def distance(self, size: int) -> int:
        """Distance of `size` from the range, or from the multiple below; 0 when `size` fits."""
        return max(self.min - size, size - self.max, 0) or size % self.multiple

    def above(self, count: int) -> int:
        """The size `count` multiples above the smallest, or the largest if that comes first."""
        smallest = -(-self.min // self.multiple) * self.multiple
        return min(smallest + count * self.multiple, self.max // self.multiple * self.multiple)


@dataclass(frozen=True)
class ShapeProfile:
    """A range for each named dimension of a network."""

    ranges: Mapping[str, DimRange] = field(default_factory=dict)

    def violations(self, sizes: Mapping[str, int]) -> list[str]:
        """One phrase for each dimension of `sizes` that does not fit; empty when all fit."""
        found = ((name, self.ranges[name].violation(size)) for name, size in sizes.items() if name in self.ranges)
        return [f"{name} {reason}" for name, reason in found if reason]

    def fits(self, sizes: Mapping[str, int]) -> bool:
        """True when every dimension of `sizes` is in its range."""
        return not self.violations(sizes)

    def distance(self, sizes: Mapping[str, int]) -> tuple[int, int]:
        """Number of dimensions of `sizes` outside their ranges, and the sum of their distances."""
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
        """Sizes that the parity check runs: the smallest, uneven ones above, the tuned ones; without duplicates.

        Uneven sizes reveal errors that a single item or a square would hide, such as swapped branches or sides.
        """
        smallest = {name: limits.above(0) for name, limits in self.ranges.items()}
        uneven = {name: limits.above(number) for number, (name, limits) in enumerate(self.ranges.items(), 1)}
        found = [smallest, uneven, self.optimum]
        return [sizes for number, sizes in enumerate(found) if sizes not in found[:number]]

    @property
    def width(self) -> int:
        """Extent of the profile relative to a single shape: the product of the ranges' ratios, rounded."""
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

    def violations(self, sizes: Mapping[str, int]) -> list[str]:
        """Violations of the nearest preset."""
        return self._nearest(sizes).violations(sizes)

    def distance(self, sizes: Mapping[str, int]) -> tuple[int, int]:
        """Distance of `sizes` from the nearest preset."""
        return self._nearest(sizes).distance(sizes)

    @property
    def corners(self) -> list[dict[str, int]]:
        """Corners of every preset, without duplicates."""
        found = [sizes for preset in self.presets for sizes in preset.corners]
        return [sizes for number, sizes in enumerate(found) if sizes not in found[:number]]

    @property
    def width(self) -> int:
        """Sum of the presets' widths: more than one preset's, less than that of a range over all presets."""
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


def profile_from_dict(data: dict[str, Any]) -> ShapeProfile:
    """Rebuilds a profile from `dataclasses.asdict` after JSON; raises LookupError or TypeError on anything else."""
    ranges = {name: DimRange(**limits) for name, limits in data["ranges"].items()}
    if "presets" not in data:
        return ShapeProfile(ranges)
    return Presets(ranges, tuple(profile_from_dict(preset) for preset in data["presets"]))
