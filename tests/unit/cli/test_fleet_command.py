"""`run.py fleet` without Ray: its statuses, its lines, and what `fleet status` says of a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from i2v_tensorrt.cli.fleet_command import main
from i2v_tensorrt.remote.batch.records import RECORDS
from i2v_tensorrt.remote.fleet.prebuild import prebuild_folder
from i2v_tensorrt.tests.helpers.fake_comfy import GRAPH

Fleet = Callable[..., tuple[int, str, str]]
LOCAL = ("--address", "local", "--maker", "stand-in")


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Fleet:
    """The command's status and what it says, in a folder with a workflow and three pictures."""
    monkeypatch.chdir(tmp_path)
    Path("graph.json").write_text(json.dumps(GRAPH))
    Path("in").mkdir()
    for number in range(3):
        Path("in", f"p{number}.png").write_text(json.dumps({"number": number}))

    def run(*words: str) -> tuple[int, str, str]:
        status = main(words)
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def test_a_folder_becomes_clips_once(fleet: Fleet) -> None:
    status, out, _ = fleet("graph.json", "--image", "in", "--out", "out", *LOCAL, "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    assert [(row["status"], Path(row["picture"]).name) for row in rows] == [("done", f"p{n}.png") for n in range(3)]
    assert all(Path(row["files"][0]).is_file() and row["worker"] == "local/cpu-0" for row in rows)
    assert fleet("graph.json", "--image", "in", "--out", "out", *LOCAL) == (0, "", "3 of 3 clips are there.\n")
    Path(rows[0]["files"][0]).unlink()
    status, out, err = fleet("graph.json", "--image", "in", "--out", "out", *LOCAL, "--workers", "2")
    assert (status, err) == (0, "2 of 3 clips are there.\n")
    assert out.startswith("[3/3] p0-") and "done in" in out
    assert fleet("graph.json", "--set", "LoadImage.channel=red", "--out", "out", *LOCAL)[0] == 2, "no such input there"


def test_a_clip_that_fails_has_a_line_and_gives_status_1(fleet: Fleet) -> None:
    Path("in", "p1.png").write_text(json.dumps({"fails": "no clip of this"}))
    status, out, _ = fleet("graph.json", "--image", "in", "--out", "out", *LOCAL)
    assert status == 1 and out.count(": done in") == 2
    assert ": error on local/cpu-0: no clip of this" in out
    status, out, _ = fleet("status", "--out", "out")
    counts, failed = out.splitlines()
    assert (status, counts) == (0, "0 waiting, 0 running, 2 done, 1 failed, 0 lost")
    assert failed.startswith("failed: p1-") and failed.endswith(": no clip of this")
    told = json.loads(fleet("status", "--out", "out", "--json")[1])
    assert told["done"] == 2 and list(told["reasons"].values()) == ["no clip of this"]


def test_prebuild_leaves_the_batch_alone(fleet: Fleet) -> None:
    status, _, err = fleet("prebuild", "graph.json", "--image", "in", "--out", "out", *LOCAL)
    assert status == 1 and "Expected a node with the input on_missing" in err
    graph = {**GRAPH, "3": {"class_type": "Loader", "inputs": {"on_missing": "auto"}}}
    Path("graph.json").write_text(json.dumps(graph))
    status, out, _ = fleet("prebuild", "graph.json", "--image", "in", "--out", "out", *LOCAL)
    assert status == 0 and out.startswith("[1/1] cpu-")
    assert len(list(prebuild_folder(Path("out")).glob("cpu-*.mp4"))) == 1
    assert list(Path("out").iterdir()) == [Path("out", RECORDS)]


def test_ray_s_own_command_is_at_hand(capfd: pytest.CaptureFixture[str]) -> None:
    ray = pytest.importorskip("ray", reason="python -m pip install -r remote/fleet/requirements.txt")
    assert main(["ray", "--version"]) == 0
    assert ray.__version__ in capfd.readouterr().out
    assert main(["ray", "no-such-word"]) == 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["status", "--out", "nowhere"], "Expected a folder that a fleet has worked in"),
        (["graph.json", "--image", "nowhere", "--out", "out"], "Expected a picture or a folder at nowhere"),
        (["missing.json", "--image", "in", "--out", "out"], "Expected a workflow at missing.json"),
        (["graph.json", "--image", "in", "--out", "in"], "two folders"),
    ],
    ids=["no fleet", "no pictures", "no workflow", "one folder"],
)
def test_a_wrong_command_line_gives_one_sentence_and_status_2(fleet: Fleet, words: list[str], told: str) -> None:
    status, out, err = fleet(*words)
    assert (status, out, err.count("\n")) == (2, "", 1) and told in err
    assert not Path("out").exists()


@pytest.mark.parametrize("words", [[], ["graph.json"], ["graph.json", "--out", "out", "--workers", "0"], ["status"]])
def test_a_command_line_that_is_incomplete_gives_status_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
