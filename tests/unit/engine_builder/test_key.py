"""An engine's name: the same in every process, another for every difference."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from enum import Enum
from itertools import cycle, permutations
from typing import Any

import pytest

from i2v_tensorrt.common.digest import canonical_json, digest
from i2v_tensorrt.common.pack_paths import PACK
from i2v_tensorrt.common.shapes import ShapeProfile
from i2v_tensorrt.common.spec import PRECISIONS, Target
from i2v_tensorrt.engine_builder.store import key as key_module
from i2v_tensorrt.engine_builder.store.key import engine_key

from ...helpers.toys import LIMITS, TARGET, toy_spec

CHILD = """
import importlib.util, json, sys
init = sys.argv[1]
found = importlib.util.spec_from_file_location("pack", init, submodule_search_locations=[init.rpartition("/")[0]])
sys.modules["pack"] = importlib.util.module_from_spec(found)
found.loader.exec_module(sys.modules["pack"])
from pack.engine_builder.store.key import engine_key
from pack.common.spec import Target, spec_from_dict
print(engine_key(spec_from_dict(json.loads(sys.argv[2])), Target(**json.loads(sys.argv[3]))))
"""


def variants(value: Any) -> Iterator[tuple[str, Any]]:
    """Every way to change one thing in a tree of dataclasses, mappings and tuples, with its place."""
    if is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            for place, changed in variants(getattr(value, field.name)):
                yield f".{field.name}{place}", replace(value, **{field.name: changed})
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield f"[-{name}]", {key: other for key, other in value.items() if key != name}
            for place, changed in variants(item):
                yield f"[{name}]{place}", {**value, name: changed}
    elif isinstance(value, tuple):
        yield "[:-1]", value[:-1]
        if len(set(map(repr, value))) > 1:
            yield "[::-1]", value[::-1]
        for number, item in enumerate(value):
            for place, changed in variants(item):
                yield f"[{number}]{place}", (*value[:number], changed, *value[number + 1 :])
    else:
        yield "", another(value)


def another(value: Any) -> Any:
    """A value of the same kind that differs."""
    if isinstance(value, Enum):
        return next(member for member in type(value) if member is not value)
    if value in PRECISIONS:
        return next(name for name in PRECISIONS if name != value)
    if isinstance(value, bool):
        return not value
    if value is None:
        return (0.0, 1.0)
    return f"{value}x" if isinstance(value, str) else value + 1


SPEC = replace(toy_spec(), rewrites=("joined",))
SPEC_VARIANTS = dict(variants(SPEC))
TARGET_VARIANTS = dict(variants(TARGET))


def test_the_variants_reach_every_field() -> None:
    """So that a field that is added later is tested without being listed."""
    reached = " ".join([*SPEC_VARIANTS, *TARGET_VARIANTS])
    tensor, limits = SPEC.network.inputs[0], SPEC.profile.ranges["batch"]
    for part in (SPEC, SPEC.network, tensor, limits, TARGET):
        for field in fields(part):
            assert f".{field.name}" in reached


def test_another_specification_or_target_is_another_engine_each() -> None:
    places = {engine_key(SPEC, TARGET): "neither"}
    variants = [(place, spec, TARGET) for place, spec in SPEC_VARIANTS.items()]
    variants += [(place, SPEC, target) for place, target in TARGET_VARIANTS.items()]
    for place, spec, target in variants:
        assert places.setdefault(engine_key(spec, target), place) is place


def test_the_order_of_ranges_and_rewrites_does_not_matter_and_no_rewrites_leave_the_name_as_it_was() -> None:
    orders = permutations(LIMITS.ranges.items())
    rewrites = cycle([*permutations(["a", "b", "c"]), ("b", "a", "b", "c")])
    pairs = zip(orders, rewrites, strict=False)
    specs = [replace(SPEC, profile=ShapeProfile(dict(each)), rewrites=names) for each, names in pairs]
    (key,) = {engine_key(spec, TARGET) for spec in specs}
    assert key != engine_key(SPEC, TARGET)
    plain = {name: value for name, value in asdict(toy_spec()).items() if name not in ("rewrites", "calibration")}
    for tensor in (*plain["network"]["inputs"], *plain["network"]["outputs"]):
        del tensor["scene"]
    body = {"schema": key_module.SCHEMA, "spec": plain, "target": asdict(TARGET)}
    assert engine_key(toy_spec(), TARGET) == digest(body), "engines from before rewrites are found"


def test_another_schema_is_another_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    before = engine_key(SPEC, TARGET)
    monkeypatch.setattr(key_module, "SCHEMA", key_module.SCHEMA + 1)
    assert engine_key(SPEC, TARGET) != before


def test_a_key_is_a_name_that_every_file_system_takes_and_the_same_in_every_process() -> None:
    key = engine_key(SPEC, TARGET)
    assert len(key) == 64
    assert set(key) <= set("0123456789abcdef")
    command = [sys.executable, "-c", CHILD, str(PACK / "__init__.py"), *(json.dumps(asdict(x)) for x in (SPEC, TARGET))]
    for seed in range(20):
        environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.split() == [key]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"b": 1, "a": [True, None]}, '{"a":[true,null],"b":1}'),
        ({"ü": "\u2028"}, '{"\\u00fc":"\\u2028"}'),
        (0.1 + 0.2, "0.30000000000000004"),
    ],
)
def test_canonical_json_has_one_form(value: Any, text: str) -> None:
    assert canonical_json(value) == text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"x": float("-inf")}])
def test_what_is_not_json_has_no_digest(value: Any) -> None:
    with pytest.raises(ValueError, match="JSON"):
        digest(value)


def test_a_target_is_told_apart_by_what_it_says_not_where() -> None:
    """Two fields that trade their values must not give the same text."""
    assert engine_key(SPEC, Target("a", "b", "c", "d")) != engine_key(SPEC, Target("b", "a", "c", "d"))
