"""What a queue reads: its workflow, with what `--set` and `--image` find in it."""

import json
from pathlib import Path
from typing import Any

import pytest

from i2v_tensorrt.common import workflow_names
from i2v_tensorrt.remote.batch.workflow import (
    Place,
    Prompt,
    UsageError,
    Workflow,
    find_input,
    find_picture,
    parse_value,
    read_workflow,
    set_inputs,
)
from i2v_tensorrt.tests.helpers.fake_comfy import CLASSES

ROOT = Path(__file__).resolve().parents[3]


def node(class_type: str, title: str | None = None, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs} | ({"_meta": {"title": title}} if title else {})


PROMPT: Prompt = {
    "1": node("LoadImage", "Picture", image="x.png"),
    "2": node("KSampler", "Sampler v1.5", seed=1, steps=20),
    "3": node("KSampler", "Second", seed=1),
    "4:7": node("SaveVideo", frames=["2", 0], format="mp4"),
}
info = CLASSES.get


@pytest.mark.parametrize(
    ("named", "place"),
    [
        ("2.seed", Place("2", "seed")),
        ("Second.seed", Place("3", "seed")),
        ("Sampler v1.5.steps", Place("2", "steps")),
        ("SaveVideo.format", Place("4:7", "format")),
        ("4:7.format.codec", Place("4:7", "format.codec")),
        ("LoadImage.channel", Place("1", "channel")),
    ],
)
def test_an_input_is_named_in_many_ways(named: str, place: Place) -> None:
    assert find_input(PROMPT, named, info) == place


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("9.seed=1", "no node for 9.seed; there are 1 (Picture, LoadImage), 2 (Sampler v1.5, KSampler)"),
        ("KSampler.seed=1", "KSampler names 2 nodes, so name one of them by its id: 2, 3."),
        ("2.sed=1", "has no input sed; it has seed, steps."),
        ("1.chanel=1", "has no input chanel; it has image, channel."),
        ("seed=1", "named as NODE.INPUT, found seed"),
        ("=1", "named as NODE.INPUT"),
        ("2.seed", "takes NODE.INPUT=VALUE, found 2.seed"),
    ],
)
def test_what_cannot_be_set_is_told_with_what_can(setting: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        set_inputs(PROMPT, [setting], info)
    assert told in str(caught.value)


def test_settings_change_a_copy_and_the_last_one_wins() -> None:
    before = json.dumps(PROMPT)
    changed = set_inputs(PROMPT, ["2.seed=7", "Second.seed=8", "2.seed=9", "1.channel=a=b"], info)
    assert (changed["2"]["inputs"]["seed"], changed["3"]["inputs"]["seed"]) == (9, 8)
    assert changed["1"]["inputs"]["channel"] == "a=b"
    assert json.dumps(PROMPT) == before


@pytest.mark.parametrize(
    ("text", "value"),
    [("7", 7), ("1.5", 1.5), ("true", True), ('["4", 0]', ["4", 0]), ('"7"', "7"), ("a cat", "a cat"), ("", "")]
    + [(text, text) for text in ("NaN", "-Infinity", "{broken")],
)
def test_a_value_is_json_or_else_text(text: str, value: Any) -> None:
    found = parse_value(text)
    assert found == value
    assert type(found) is type(value)


def test_the_picture_goes_into_the_only_loader() -> None:
    assert find_picture(PROMPT) == Place("1", "image")
    assert find_picture({**PROMPT, "8": node("LoadImageMask", image="y.png")}) == Place("1", "image")
    assert find_picture({"5": node("OtherLoader", image="y.png")}) == Place("5", "image")


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ({"2": PROMPT["2"]}, "found none"),
        ({"1": PROMPT["1"], "5": node("LoadImage", image="y")}, "found 1 (Picture, LoadImage), 5 (LoadImage)"),
        ({"6": node("Scale", image=["1", 0])}, "found none"),
    ],
    ids=["no loader", "two", "a link"],
)
def test_a_picture_without_a_place_of_its_own_is_refused(prompt: Prompt, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_picture(prompt)
    assert told in str(caught.value)
    assert "--into" in str(caught.value)


def test_the_digest_is_of_what_comes_out() -> None:
    place = Place("1", "image")
    placed = Workflow(PROMPT, place).with_picture("new.png")
    assert (placed["1"]["inputs"], PROMPT["1"]["inputs"]) == ({"image": "new.png"}, {"image": "x.png"}), "a copy"
    assert {name: placed[name] for name in "23"} == {name: PROMPT[name] for name in "23"}
    digest = Workflow(PROMPT, place).digest
    retitled = {**PROMPT, "2": {**PROMPT["2"], "_meta": {"title": "other"}}}
    repictured = {**PROMPT, "1": node("LoadImage", image="z.png")}
    reseeded = set_inputs(PROMPT, ["2.seed=2"], info)
    assert Workflow(retitled, place).digest == Workflow(repictured, place).digest == digest
    assert Workflow(reseeded, place).digest != digest
    assert Workflow(repictured).digest != Workflow(PROMPT).digest


@pytest.mark.parametrize(("node_id", "title"), [("3", "Second"), ("3.0.0.1", "Second"), ("2:5", "Sampler v1.5")])
def test_a_node_is_called_as_people_call_it(node_id: str, title: str) -> None:
    assert Workflow(PROMPT).title(node_id) == title


@pytest.mark.parametrize("name", [workflow_names.QUICK_START, workflow_names.MIXED])
def test_our_own_workflows_can_be_queued_and_those_of_the_page_are_told_apart(name: str, tmp_path: Path) -> None:
    path = ROOT / "workflows" / "api" / f"{name}.json"
    prompt, extra_data = read_workflow(path)
    assert not extra_data and prompt == json.loads(path.read_text("utf-8"))
    find_picture(prompt)
    (tmp_path / "body.json").write_text(json.dumps({"prompt": prompt, "client_id": "x", "extra_data": {"a": 1}}))
    assert read_workflow(tmp_path / "body.json") == (prompt, {"a": 1}), "the body of a request is one too"
    with pytest.raises(UsageError, match=r"Export \(API\)"):
        read_workflow(ROOT / "workflows" / f"{name}.json")


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "found none"), ("{", "in JSON"), ("{}", "something else"), ("[1]", "something else")]
    + [('{"1": {"class_type": "A"}}', "something else"), ('{"1": 2}', "something else")]
    + [('{"prompt": {"1": {"class_type": "A", "inputs": {}}}, "extra_data": [1]}', "object as extra_data, found list")],
)
def test_a_file_that_is_no_workflow_is_one_sentence(tmp_path: Path, content: str | None, told: str) -> None:
    path = tmp_path / "graph.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match=told) as caught:
        read_workflow(path)
    assert "\n" not in str(caught.value)
