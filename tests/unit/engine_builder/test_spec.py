"""Networks, shapes and precisions as plain data: arithmetic, refusals, and the way through JSON."""

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from i2v_tensorrt.common.errors import EngineError, InputError
from i2v_tensorrt.common.shapes import DimRange, Presets, ShapeProfile, span
from i2v_tensorrt.common.spec import PRECISIONS, EngineSpec, NetworkSpec, TensorSpec, spec_from_dict, split_dim

from ...helpers.toys import LIMITS, toy_network, toy_spec

PIXELS = TensorSpec("image", ("batch", 3, "latent_height*8", "latent_width*8"))
SIZES = {"batch": 2, "frames": 3, "latent_height": 8, "latent_width": 6}
WIDE = {**SIZES, "latent_height": 16, "latent_width": 24}
PRESETS = span([LIMITS.exact(SIZES), LIMITS.exact(WIDE)], LIMITS)


def test_a_dimension_is_a_name_and_a_factor() -> None:
    found = [split_dim(dim) for dim in ("batch", "latent_height*8", "n*1")]
    assert found == [("batch", 1), ("latent_height", 8), ("n", 1)]


@settings(deadline=None)
@given(st.fixed_dictionaries({name: st.integers(1, 300) for name in ("batch", "latent_height", "latent_width")}))
def test_sizes_read_off_a_shape_give_the_shape(sizes: dict[str, int]) -> None:
    found: dict[str, int] = {}
    assert PIXELS.read_sizes(PIXELS.shape_at(sizes), found)
    assert found == sizes


@pytest.mark.parametrize(
    "shape",
    [(2, 4, 64, 64), (2, 3, 64), (2, 3, 64, 64, 1), (2, 3, 65, 64), (2, 3, 64, 60), ()],
    ids=["fixed", "rank-low", "rank-high", "height", "width", "scalar"],
)
def test_a_shape_that_does_not_fit_its_tensor_is_seen(shape: tuple[int, ...]) -> None:
    assert not PIXELS.read_sizes(shape, {})


def test_only_tensors_in_the_engines_precision_change_with_it() -> None:
    for precision, dtype in PRECISIONS.items():
        assert [tensor.dtype_at(precision) for tensor in toy_network().inputs] == [dtype, "float32"]


def inputs(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"sample": torch.zeros(2, 4, 3, 8, 6), "strength": torch.zeros(2, 4), **changes}


def test_the_sizes_of_a_network_come_from_all_its_inputs() -> None:
    assert toy_network().sizes_of(inputs()) == SIZES


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (inputs(strength=torch.zeros(1, 4)), r"strength as \['batch', 4\] with .*'batch': 2.*, found \[1, 4\]"),
        (inputs(sample=torch.zeros(2, 5, 3, 8, 6)), r"sample as .*, found \[2, 5, 3, 8, 6\]"),
        (inputs(other=torch.zeros(1)), r"\['sample', 'strength'\], found \['other', 'sample', 'strength'\]"),
        ({"sample": torch.zeros(2, 4, 3, 8, 6)}, r"\['sample', 'strength'\], found \['sample'\]"),
    ],
    ids=["disagree", "channels", "unknown", "missing"],
)
def test_tensors_that_do_not_fit_a_network_are_named(wrong: dict[str, torch.Tensor], words: str) -> None:
    with pytest.raises(InputError, match=words):
        toy_network().sizes_of(wrong)


# Ranges and profiles.


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        (4, None),
        (32, None),
        (10, None),
        (2, "is 2, 2 below the smallest supported 4"),
        (0, "is 0, 4 below the smallest supported 4"),
        (-8, "is -8, 12 below the smallest supported 4"),
        (40, "is 40, 8 above the largest supported 32"),
        (9, "is 9, 1 more than a multiple of 2"),
    ],
)
def test_a_misfit_says_by_how_much(size: int, reason: str | None) -> None:
    assert DimRange(4, 8, 32, 2).violation(size) == reason


def test_a_profile_names_every_dimension_that_does_not_fit() -> None:
    violations = LIMITS.violations({**SIZES, "frames": 20, "latent_width": 7, "unknown": 99})
    assert violations == [
        "frames is 20, 4 above the largest supported 16",
        "latent_width is 7, 1 more than a multiple of 2",
    ]
    assert LIMITS.fits(SIZES)
    assert not LIMITS.fits({**SIZES, "frames": 20})


@pytest.mark.parametrize(
    ("sizes", "distance"),
    [
        (SIZES, (0, 0)),
        ({**SIZES, "frames": 20}, (1, 4)),
        ({**SIZES, "frames": 20, "latent_height": 2}, (2, 6)),
        ({**SIZES, "latent_width": 7}, (1, 1)),
        ({**SIZES, "latent_width": 35}, (1, 3)),
        ({**SIZES, "unknown": 99}, (0, 0)),
    ],
)
def test_the_distance_to_a_profile_counts_dimensions_first(sizes: dict[str, int], distance: tuple[int, int]) -> None:
    assert LIMITS.distance(sizes) == distance


def test_an_exact_profile_takes_its_sizes_alone() -> None:
    exact = LIMITS.exact({"frames": 3, "latent_height": 8, "latent_width": 6})
    assert exact.fits(SIZES)
    assert exact.fits({**SIZES, "batch": 1}), "a dimension that was not named keeps its range"
    assert not any(exact.fits({**SIZES, name: SIZES[name] + 2}) for name in ("frames", "latent_height", "latent_width"))
    assert LIMITS.exact(SIZES).corners == [SIZES]
    assert ShapeProfile().corners == [{}]


def test_the_width_orders_profiles_from_exact_to_wide() -> None:
    assert LIMITS.exact({"frames": 3, "latent_height": 8, "latent_width": 6}).width == 2
    narrower = ShapeProfile({**LIMITS.ranges, "frames": DimRange(8, 12, 16)})
    assert 1 == ShapeProfile().width == LIMITS.exact(SIZES).width < narrower.width < LIMITS.width
    assert PRESETS.width == 2 < ShapeProfile(PRESETS.ranges).width


def profiles() -> st.SearchStrategy[ShapeProfile]:
    @st.composite
    def dim_range(draw: Any) -> DimRange:
        multiple = draw(st.sampled_from([1, 2, 8]))
        smallest, steps = draw(st.integers(1, 20)), draw(st.integers(0, 30))
        least = -(-smallest // multiple) * multiple
        opt = least + multiple * draw(st.integers(0, steps))
        return DimRange(smallest, opt, least + multiple * steps + draw(st.integers(0, multiple - 1)), multiple)

    return st.dictionaries(st.sampled_from(["batch", "frames", "latent_height"]), dim_range()).map(ShapeProfile)


@settings(deadline=None)
@given(profiles())
def test_verification_runs_at_sizes_that_the_profile_takes(profile: ShapeProfile) -> None:
    corners = profile.corners
    assert all(profile.fits(corner) and set(corner) == set(profile.ranges) for corner in corners)
    assert profile.optimum in corners
    assert all(corner not in corners[:number] for number, corner in enumerate(corners))


def test_verification_runs_more_than_one_item_of_what_may_be_more_than_one() -> None:
    """Tuned for one branch and one frame, an engine still has to be right for two and for many."""
    tuned = ShapeProfile({**LIMITS.ranges, "batch": DimRange(1, 1, 2), "frames": DimRange(1, 1, 16)})
    seen = {name: {corner[name] for corner in tuned.corners} for name in tuned.ranges}
    assert max(seen["batch"]) == 2
    assert max(seen["frames"]) > 1
    assert any(corner["latent_height"] != corner["latent_width"] for corner in tuned.corners)


# Presets.


def test_presets_serve_each_of_theirs_and_nothing_between() -> None:
    assert PRESETS.profiles == (LIMITS.exact(SIZES), LIMITS.exact(WIDE))
    assert PRESETS.fits(SIZES) and PRESETS.fits(WIDE)
    mixed = {**SIZES, "latent_width": WIDE["latent_width"]}
    assert all(limits.violation(mixed[name]) is None for name, limits in PRESETS.ranges.items())
    assert not PRESETS.fits(mixed)


@pytest.mark.parametrize(
    ("sizes", "violations", "distance"),
    [
        (SIZES, [], (0, 0)),
        ({**SIZES, "latent_width": 8}, ["latent_width is 8, 2 above the largest supported 6"], (1, 2)),
        ({**WIDE, "latent_height": 12}, ["latent_height is 12, 4 below the smallest supported 16"], (1, 4)),
    ],
)
def test_a_miss_is_measured_from_the_nearest_preset(
    sizes: dict[str, int], violations: list[str], distance: tuple[int, int]
) -> None:
    assert PRESETS.violations(sizes) == violations
    assert PRESETS.distance(sizes) == distance


def test_presets_span_the_networks_own_multiples_are_tuned_for_the_first_and_all_verified() -> None:
    assert PRESETS.optimum == SIZES
    assert PRESETS.ranges["latent_width"] == DimRange(6, 6, 24, LIMITS.ranges["latent_width"].multiple)
    assert PRESETS.ranges["frames"] == DimRange(3, 3, 3)
    assert PRESETS.corners == [SIZES, WIDE]
    open_batch = [LIMITS.exact({n: s for n, s in sizes.items() if n != "batch"}) for sizes in (SIZES, WIDE)]
    assert len(span(open_batch, LIMITS).corners) == 4


def test_equal_presets_are_one_profile() -> None:
    assert span([LIMITS.exact(SIZES)] * 2, LIMITS) == LIMITS.exact(SIZES)
    assert LIMITS.profiles == (LIMITS,)
    with pytest.raises(InputError, match="two profiles or more, found 1"):
        Presets(LIMITS.ranges, (LIMITS,))


# Through JSON.


def as_json(spec: EngineSpec) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(spec)))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_specification_survives_json(precision: str) -> None:
    for profile in (LIMITS.exact(SIZES), PRESETS):
        spec = replace(toy_spec(profile, precision, exportable=False), rewrites=("b", "a"))
        assert spec_from_dict(as_json(spec)) == spec
    assert toy_spec(PRESETS) != toy_spec(ShapeProfile(PRESETS.ranges))


MISSING = object()


def with_value(value: Any, *path: str | int) -> dict[str, Any]:
    """The JSON of a specification with another value at a place, or with nothing there."""
    data = found = as_json(toy_spec())
    for name in path[:-1]:
        found = found[name]  # type: ignore[index]
    if value is MISSING:
        del found[path[-1]]  # type: ignore[arg-type]
    else:
        found[path[-1]] = value  # type: ignore[index]
    return data


def test_a_specification_from_before_rewrites_has_none() -> None:
    assert spec_from_dict(with_value(MISSING, "rewrites")) == toy_spec()


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (MISSING, ("network",)),
        (MISSING, ("profile",)),
        (MISSING, ("precision",)),
        (MISSING, ("network", "limits")),
        (MISSING, ("profile", "ranges")),
        ("int4", ("precision",)),
        (7, ("rewrites",)),
        (["a", 1], ("rewrites",)),
        (["fp32"], ("precision",)),
        (None, ("network",)),
        ([], ("profile",)),
        ("often", ("network", "inputs", 0, "scope")),
        ("both", ("network", "inputs", 0, "guidance")),
        (7, ("network", "inputs", 0, "dims")),
        ([1], ("network", "inputs", 0, "span")),
        (1, ("network", "surprise")),
        ({"min": 1}, ("profile", "ranges", "batch")),
        ([], ("profile", "presets")),
        (7, ("profile", "presets")),
        ([{}, {}], ("profile", "presets")),
        ({"min": 1, "opt": 1, "max": 1, "least": 1}, ("profile", "ranges", "batch")),
    ],
)
def test_a_specification_that_lacks_something_or_has_something_else_is_malformed(
    value: Any, path: tuple[str | int, ...]
) -> None:
    with pytest.raises(EngineError, match="malformed"):
        spec_from_dict(with_value(value, *path))


@pytest.mark.parametrize("precision", ["", "FP32", "int4", "auto"])
def test_an_unknown_precision_is_refused(precision: str) -> None:
    with pytest.raises(InputError, match=f"fp32, fp16, bf16, int8, fp8, found '{precision}'"):
        toy_spec(precision=precision)


def test_specifications_cannot_be_changed() -> None:
    spec = toy_spec()
    with pytest.raises(AttributeError):
        spec.precision = "fp16"  # type: ignore[misc]
    assert isinstance(replace(spec.network, family="other"), NetworkSpec)
