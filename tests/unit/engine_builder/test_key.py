"""An engine's name: the same in every process, another for every difference."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from i2v_tensorrt.common.digest import canonical_json, digest
from i2v_tensorrt.common.shapes import ShapeProfile
from i2v_tensorrt.common.spec import PRECISIONS, Target
from i2v_tensorrt.engine_builder.store import key as key_module
from i2v_tensorrt.engine_builder.store.key import engine_key

from ...helpers.toys import LIMITS, TARGET, toy_spec

CONFTEST = Path(__file__).resolve().parents[2] / "conftest.py"
CHILD = """
import json, runpy, sys
runpy.run_path(sys.argv[1])
from i2v_tensorrt.engine_builder.store.key import engine_key
from i2v_tensorrt.common.spec import Target, spec_from_dict
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


@pytest.mark.parametrize("place", SPEC_VARIANTS)
def test_another_specification_is_another_engine(place: str) -> None:
    assert engine_key(SPEC_VARIANTS[place], TARGET) != engine_key(SPEC, TARGET)


@pytest.mark.parametrize("place", TARGET_VARIANTS)
def test_another_target_is_another_engine(place: str) -> None:
    assert engine_key(SPEC, TARGET_VARIANTS[place]) != engine_key(SPEC, TARGET)


def test_all_variants_have_different_names() -> None:
    keys = [engine_key(spec, TARGET) for spec in SPEC_VARIANTS.values()]
    keys += [engine_key(SPEC, target) for target in TARGET_VARIANTS.values()]
    assert len(set(keys)) == len(keys)


def test_rewrites_are_a_set_and_none_leave_the_name_as_it_was() -> None:
    one, other = (replace(SPEC, rewrites=names) for names in (("a", "b"), ("b", "a", "b")))
    assert engine_key(one, TARGET) == engine_key(other, TARGET) != engine_key(SPEC, TARGET)
    plain = {name: value for name, value in asdict(toy_spec()).items() if name not in ("rewrites", "calibration")}
    body = {"schema": key_module.SCHEMA, "spec": plain, "target": asdict(TARGET)}
    assert engine_key(toy_spec(), TARGET) == digest(body), "engines from before rewrites are found"


def test_another_schema_is_another_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    before = engine_key(SPEC, TARGET)
    monkeypatch.setattr(key_module, "SCHEMA", key_module.SCHEMA + 1)
    assert engine_key(SPEC, TARGET) != before


def test_the_order_of_ranges_does_not_matter() -> None:
    backwards = ShapeProfile(dict(reversed(LIMITS.ranges.items())))
    assert engine_key(replace(SPEC, profile=backwards), TARGET) == engine_key(SPEC, TARGET)


def test_a_key_is_a_name_that_every_file_system_takes() -> None:
    key = engine_key(SPEC, TARGET)
    assert len(key) == 64
    assert set(key) <= set("0123456789abcdef")


@pytest.mark.parametrize("seed", ["0", "1", "4242"])
def test_the_key_is_the_same_in_every_process(seed: str) -> None:
    data = [json.dumps(asdict(part)) for part in (SPEC, TARGET)]
    command = [sys.executable, "-c", CHILD, str(CONFTEST), *data]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == engine_key(SPEC, TARGET)


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
