"""What the server tells programs and people of each node."""

from typing import Any

import pytest

from i2v_tensorrt.cli import words_command
from i2v_tensorrt.cli.node_info import PREFIX, stored
from i2v_tensorrt.remote.comfyui.client import ComfyClient
from i2v_tensorrt.remote.comfyui.server import ComfyServer
from i2v_tensorrt.tests.live.graphs import CHECKPOINT

MODULE = "custom_nodes.I2V-TensorRT"
NODES = {name for name in stored() if name.startswith(PREFIX)}


@pytest.fixture(scope="module")
def nodes(client: ComfyClient) -> dict[str, dict[str, Any]]:
    """The pack's entries in /object_info."""
    return {name: info for name, info in client.object_info().items() if info["python_module"] == MODULE}


def inputs(info: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Each input's settings, by its id."""
    return {name: entry[1] for kind in ("required", "optional") for name, entry in info["input"].get(kind, {}).items()}


def test_all_nodes_are_there(nodes: dict[str, dict[str, Any]]) -> None:
    assert set(nodes) == NODES


@pytest.mark.parametrize("name", sorted(NODES))
class TestNode:
    def test_it_describes_itself(self, nodes: dict[str, dict[str, Any]], name: str) -> None:
        info = nodes[name]
        assert info["category"] == "I2V TensorRT"
        assert info["display_name"].startswith("I2V ")
        assert info["description"].endswith(".")

    def test_it_can_be_found_by_other_words(self, nodes: dict[str, dict[str, Any]], name: str) -> None:
        if "search_aliases" not in nodes[name]:
            pytest.skip("this ComfyUI knows no search aliases")
        assert len(set(nodes[name]["search_aliases"])) >= 3

    def test_every_input_and_output_has_a_tooltip(self, nodes: dict[str, dict[str, Any]], name: str) -> None:
        info = nodes[name]
        without = [key for key, settings in inputs(info).items() if not settings.get("tooltip", "").endswith(".")]
        assert without == []
        tooltips = info["output_tooltips"] or []
        assert len(tooltips) == len(info["output"])
        assert all(tooltip.endswith(".") for tooltip in tooltips)

    def test_no_name_stands_twice(self, nodes: dict[str, dict[str, Any]], name: str) -> None:
        info = nodes[name]
        assert len(set(info["output_name"])) == len(info["output_name"])

    def test_every_default_is_a_value_that_may_be_chosen(self, nodes: dict[str, dict[str, Any]], name: str) -> None:
        for settings in inputs(nodes[name]).values():
            default = settings.get("default")
            if isinstance(default, int | float) and not isinstance(default, bool):
                assert settings["min"] <= default <= settings["max"]
            elif "options" in settings and default is not None:
                assert default in settings["options"]


def test_display_names_differ(nodes: dict[str, dict[str, Any]]) -> None:
    assert len({info["display_name"] for info in nodes.values()}) == len(nodes)


def test_the_checkpoint_is_offered(nodes: dict[str, dict[str, Any]]) -> None:
    assert CHECKPOINT in inputs(nodes["I2VTRT_ModelLoader"])["checkpoint"]["options"]


def test_what_follows_from_the_schemas_is_not_stale(server: ComfyServer, capsys: pytest.CaptureFixture[str]) -> None:
    """The stored list of nodes, the English locale, the READMEs' tables; a command writes them anew."""
    assert words_command.main(["--check", "--server", server.url]) == 0, capsys.readouterr().out
