"""Workflows of older versions run on a live ComfyUI."""

import json

import pytest

from i2v_tensorrt.remote.comfyui.client import ComfyClient
from i2v_tensorrt.tests.live.answers import run
from i2v_tensorrt.tests.live.graphs import SMALL, changed, clip
from i2v_tensorrt.tests.live.ids import PICTURE
from i2v_tensorrt.tests.unit.workflows.test_released import RELEASED, WORKFLOWS


@pytest.mark.parametrize(("version", "name"), WORKFLOWS)
def test_a_workflow_of_then_runs_now(client: ComfyClient, picture: str, version: str, name: str) -> None:
    prompt = json.loads((RELEASED / version / "api" / f"{name}.json").read_text("utf-8"))
    eager = {
        name: {"on_missing": "eager"} for name, each in prompt.items() if each["class_type"] == "I2VTRT_EngineLoader"
    }
    result = run(client, changed(prompt, SMALL, {PICTURE: {"image": picture}}, eager))
    assert any("images" in output for output in result.outputs.values())


def test_a_workflow_of_a_later_version_runs_without_what_it_adds(client: ComfyClient, picture: str) -> None:
    """After a downgrade: inputs that nodes do not have yet are left out."""
    later = clip(picture)
    for each in later.values():
        if each["class_type"].startswith("I2VTRT_"):
            each["inputs"].update(later_number=3, later_choice="new", later_switch=True)
    run(client, later)
