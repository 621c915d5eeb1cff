"""What is found out about ONNX files: by looking, by trying, and what becomes of files that mean harm."""

from __future__ import annotations

import random
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from i2v_tensorrt.common.errors import InputError
from i2v_tensorrt.pipeline.pictures.contract import Contract, contract_from_dict, contract_to_dict
from i2v_tensorrt.pipeline.pictures.find_contract import find_contract
from i2v_tensorrt.pipeline.pictures.look import look
from i2v_tensorrt.tests.helpers.counts import Evidence, counted
from i2v_tensorrt.tests.helpers.onnx_files import HOSTILE, NETWORKS, write_network

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

FOUND: dict[str, dict[str, Any]] = {
    "enlarge": {"scale": (2, 1), "multiple": 1, "batches": True, "range_in": "0..1", "guessed": ()},
    "signed": {"range_in": "-1..1", "range_out": "-1..1", "guessed": ()},
    "bytes": {"range_in": "0..255", "range_out": "0..1"},
    "mask": {"out_channels": 1, "range_out": "0..1", "guessed": ("range_in", "range_out")},
    "logits": {"out_channels": 1, "range_out": "sigmoid"},
    "last": {"layout": "NHWC", "out_layout": "NHWC"},
    "stepped": {"multiple": 8},
    "coarse": {"scale": (1, 4), "multiple": 4, "out_channels": 1},
    "fixed": {"size": (48, 64), "batches": False},
    "lying": {"size": None, "batches": True, "multiple": 1},
    "alone": {"size": None, "batches": False},
    "several": {"output": "y"},
    "whole bytes": {"dtype": "uint8", "range_in": "0..255", "range_out": "0..255", "guessed": ()},
}
REFUSED = {
    "vast": "Expected tensors of at most 8 GiB",
    "no picture": "Expected an input [number, channels, height, width], found x [1, 3]",
    "labels": "Expected an output of 1, 3 or 4 channels in the picture's proportions, found y [1, 3]",
    "features": "found y [1, 6, 128, 256]",
    "three more": "Expected at most one number and one tensor beside the picture, found a [1], b [1]",
}


@pytest.fixture
def contract_of(tmp_path: Path) -> Any:
    def find(text: str, **wishes: str) -> Contract:
        return find_contract(write_network(text, tmp_path / "network.onnx"), **wishes)

    return find


@pytest.mark.parametrize("name", FOUND)
def test_trials_show_what_a_file_takes_and_gives(contract_of: Any, name: str) -> None:
    found = contract_to_dict(contract_of(NETWORKS[name]))
    assert {key: found[key] for key in FOUND[name]} == FOUND[name]


@pytest.mark.parametrize(
    ("name", "is_number", "is_picture"), [("number", True, False), ("tensor", False, False), ("second", False, True)]
)
def test_a_further_input_is_told_by_its_shape(contract_of: Any, name: str, is_number: bool, is_picture: bool) -> None:
    (more,) = contract_of(NETWORKS[name]).more
    assert (more.is_number, more.is_picture) == (is_number, is_picture)


def test_an_output_is_chosen_by_name(contract_of: Any) -> None:
    assert contract_of(NETWORKS["several"], output="m").out_channels == 1
    with pytest.raises(InputError, match="Expected an output among z, y, m, found 'q'"):
        contract_of(NETWORKS["several"], output="q")


def test_a_layout_that_the_file_does_not_have_is_refused(contract_of: Any) -> None:
    with pytest.raises(InputError, match="Expected a picture of 1, 3 or 4 channels"):
        contract_of(NETWORKS["signed"].replace("h, w] x", "h, 7] x"), layout="NHWC")


def test_a_contract_survives_json_and_heeds_what_is_said_by_hand(contract_of: Any) -> None:
    found = contract_of(NETWORKS["coarse"])
    assert contract_from_dict(contract_to_dict(found)) == found
    assert found.factor == Fraction(1, 4)
    said = found.with_ranges("imagenet", "auto")
    assert (said.range_in, said.range_out, said.guessed) == ("imagenet", found.range_out, ("range_out",))
    with pytest.raises(InputError, match="malformed"):
        contract_from_dict({"picture": "x"})


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_picture_network_is_refused_in_a_sentence(contract_of: Any, name: str) -> None:
    with pytest.raises(InputError) as caught:
        contract_of(HOSTILE[name])
    assert REFUSED[name] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_memory_that_only_a_run_asks_for_ends_the_look_alone(tmp_path: Path) -> None:
    path = write_network(HOSTILE["vast unseen"], tmp_path / "vast.onnx")
    with pytest.raises(InputError) as caught:
        look(path)
    assert "does not run" in str(caught.value) or "ends the process" in str(caught.value)


def _elsewhere(name: str, place: str) -> Any:
    """A tensor that lies in another file, it says."""
    tensor = onnx.helper.make_tensor(name, onnx.TensorProto.FLOAT, [1], b"\0\0\0\0", raw=True)
    onnx.external_data_helper.set_external_data(tensor, place)
    return tensor


def _outside(model: Any) -> None:
    model.graph.initializer.append(_elsewhere("weights", "../secret.bin"))


def _outside_in_a_branch(model: Any) -> None:
    value = onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, [1])
    nodes, weights = [onnx.helper.make_node("Identity", ["inner"], ["z"])], [_elsewhere("inner", "/etc/passwd")]
    branch = onnx.helper.make_graph(nodes, "branch", [], [value], weights)
    model.graph.node.append(onnx.helper.make_node("If", ["x"], ["unused"], then_branch=branch, else_branch=branch))


def _foreign(model: Any) -> None:
    model.graph.node.append(onnx.helper.make_node("Evil", ["x"], ["unused"], domain="evil.example"))


def _huge_constant(model: Any) -> None:
    model.graph.initializer.append(onnx.TensorProto(name="huge", data_type=1, dims=[1 << 40]))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_outside, "which names other files"),
        (_outside_in_a_branch, "which names other files"),
        (_foreign, "found Evil of evil.example"),
        (_huge_constant, "Expected constants that lie in the file"),
    ],
)
def test_a_file_that_reaches_beyond_itself_is_refused(tmp_path: Path, change: Any, told: str) -> None:
    path = write_network(NETWORKS["signed"], tmp_path / "bad.onnx")
    model = onnx.load(str(path))
    change(model)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=told):
        find_contract(path)


def test_what_is_no_onnx_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "page.onnx"
    path.write_text("<html>not found</html>")
    with pytest.raises(InputError, match="Expected an ONNX file, found other content in page.onnx"):
        look(path)
    with pytest.raises(InputError, match="cannot be read"):
        look(tmp_path / "none.onnx")


def test_a_look_from_outside_finds_the_same(tmp_path: Path) -> None:
    path = write_network(NETWORKS["signed"], tmp_path / "network.onnx")
    assert look(path) == find_contract(path)


class _Stopped(Exception):
    pass


def test_a_look_is_cancelled(tmp_path: Path) -> None:
    def stop() -> None:
        raise _Stopped

    with pytest.raises(_Stopped):
        look(write_network(NETWORKS["signed"], tmp_path / "network.onnx"), still_wanted=stop)


@counted(20, 2000)
def test_mutated_files_are_a_contract_or_a_sentence(tmp_path: Path, count: int, evidence: Evidence) -> None:
    chance = random.Random(7)  # noqa: S311 - a test's own
    originals = [write_network(text, tmp_path / "original.onnx").read_bytes() for text in NETWORKS.values()]
    refused = 0
    for number in range(count):
        content = bytearray(originals[number % len(originals)])
        for _ in range(chance.randint(1, 6)):
            content[chance.randrange(len(content))] = chance.randrange(256)
        path = tmp_path / "mutated.onnx"
        path.write_bytes(bytes(content) if number % 5 else bytes(content[: chance.randrange(len(content))]))
        try:
            assert look(path).out_channels in (1, 3, 4)
        except InputError as error:
            refused += 1
            assert str(error).endswith(".") and "\n" not in str(error)
    assert refused > count // 4
    evidence("mutated ONNX files", count, f"{refused} refused in a sentence each, the others a contract")
