"""The pack in a live ComfyUI, and what the server tells programs and people of each node."""

import re
from pathlib import Path
from typing import Any

import pytest

from i2v_tensorrt.cli import words_command
from i2v_tensorrt.cli.node_info import PREFIX, stored
from i2v_tensorrt.common.pack_paths import PICTURES
from i2v_tensorrt.remote.comfyui.client import ComfyClient
from i2v_tensorrt.remote.comfyui.server import ComfyServer
from i2v_tensorrt.tests.live.ids import CHECKPOINT

CORES_OWN = re.compile(r"IMPORT FAILED: nodes_\w+\.py$", re.MULTILINE)
"""A file of the core's extra nodes that lacks a package."""


def test_no_import_failed(server: ComfyServer, client: ComfyClient) -> None:
    log = server.log()
    assert "Import times for custom nodes" in log
    assert "I2V-TensorRT" in log
    assert "IMPORT FAILED" not in CORES_OWN.sub("", log)
    assert "Error while calling comfy_entrypoint" not in log


def test_the_packs_pictures_are_among_the_inputs(client: ComfyClient, base_directory: Path) -> None:
    offered = client.object_info()["LoadImage"]["input"]["required"]["image"][0]
    for picture in PICTURES.glob("*.png"):
        assert (base_directory / "input" / picture.name).read_bytes() == picture.read_bytes()
        assert picture.name in offered


NODES = {name for name in stored() if name.startswith(PREFIX)}


def inputs(info: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Each input's settings, by its id."""
    return {name: entry[1] for kind in ("required", "optional") for name, entry in info["input"].get(kind, {}).items()}


@pytest.mark.parametrize("name", sorted(NODES))
def test_a_node_describes_itself_its_inputs_and_its_outputs(nodes: dict[str, dict[str, Any]], name: str) -> None:
    info = nodes[name]
    assert info["category"] == "I2V TensorRT"
    assert info["display_name"].startswith("I2V ")
    assert info["description"].endswith(".")
    assert len(set(info.get("search_aliases", range(3)))) >= 3  # which older hosts do not know
    assert len(set(info["output_name"])) == len(info["output_name"]), "no name stands twice"
    tooltips = info["output_tooltips"] or []
    assert len(tooltips) == len(info["output"])
    assert all(tooltip.endswith(".") for tooltip in tooltips)
    for key, settings in inputs(info).items():
        assert settings.get("tooltip", "").endswith("."), key
        default = settings.get("default")
        if isinstance(default, int | float) and not isinstance(default, bool):
            assert settings["min"] <= default <= settings["max"], key
        elif "options" in settings and default is not None:
            assert default in settings["options"], key


def test_all_nodes_are_there_under_names_of_their_own(nodes: dict[str, dict[str, Any]]) -> None:
    assert set(nodes) == NODES
    assert len({info["display_name"] for info in nodes.values()}) == len(nodes)
    assert CHECKPOINT in inputs(nodes["I2VTRT_ModelLoader"])["checkpoint"]["options"]


def test_what_follows_from_the_schemas_is_not_stale(server: ComfyServer, capsys: pytest.CaptureFixture[str]) -> None:
    """The stored list of nodes, the English locale, the READMEs' tables; a command writes them anew."""
    assert words_command.main(["--check", "--server", server.url]) == 0, capsys.readouterr().out
