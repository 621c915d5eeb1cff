"""What a live ComfyUI serves of the pack's face: translations, help pages and the page's own script."""

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from i2v_tensorrt.remote.comfyui.server import ComfyServer
from i2v_tensorrt.tests.helpers.locales import LANGUAGES, LOCALES, node_defs, settings
from i2v_tensorrt.tests.live.answers import got, json_of

WEB = LOCALES.parent / "web"
SERVED = sorted(path.relative_to(WEB).as_posix() for path in WEB.rglob("*.*"))


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_page_gets_every_translation(server: ComfyServer, language: str) -> None:
    served = json_of(f"{server.url}/i18n")[language]
    assert (served["nodeDefs"], served["settings"]) == (node_defs(language), settings(language))
    main = json.loads((LOCALES / language / "main.json").read_text("utf-8"))
    assert {key: served[key] for key in main} == main


def test_what_the_page_sets_is_written_where_the_pack_reads_it(server: ComfyServer) -> None:
    for on in (False, True):
        url, body = f"{server.url}/settings/I2VTensorRT.BuildWhenIdle", json.dumps(on).encode()
        headers = {"Content-Type": "application/json"}
        urllib.request.urlopen(urllib.request.Request(url, body, headers)).close()  # noqa: S310 - our own server
        (path,) = (server.base_directory / "user").glob("*/comfy.settings.json")
        assert json.loads(path.read_text("utf-8"))["I2VTensorRT.BuildWhenIdle"] is on


@pytest.mark.parametrize("name", SERVED)
def test_the_page_gets_every_file_of_ours(server: ComfyServer, nodes: dict[str, dict[str, Any]], name: str) -> None:
    """Where the page looks for help: below the name of the folder that the nodes come from."""
    (folder,) = {info["python_module"].split(".")[1] for info in nodes.values()}
    assert got(f"{server.url}/extensions/{folder}/{name}") == (WEB / name).read_bytes()


def test_the_page_loads_our_scripts(server: ComfyServer) -> None:
    """And no help page as one."""
    ours = [script for script in json_of(f"{server.url}/extensions") if "I2V-TensorRT" in script]
    assert sorted(Path(script).name for script in ours) == sorted(path.name for path in WEB.glob("*.js"))


def test_the_page_is_offered_the_blueprint(server: ComfyServer) -> None:
    """In its library of nodes; older hosts have no place for those of packs."""
    try:
        offered = json_of(f"{server.url}/global_subgraphs")
    except urllib.error.HTTPError as error:
        pytest.skip(f"this ComfyUI offers no blueprints: {error}")
    ((key, entry),) = [pair for pair in offered.items() if pair[1]["info"]["node_pack"] == "custom_nodes.I2V-TensorRT"]
    (file,) = (WEB.parent / "subgraphs").glob("*.json")
    assert entry["name"] == file.stem
    assert json_of(f"{server.url}/global_subgraphs/{key}")["data"] == file.read_text("utf-8")
