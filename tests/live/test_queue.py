"""`run.py queue` against a live ComfyUI: one workflow, and a folder of pictures while the server is killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import av
import pytest
from PIL import Image

from i2v_tensorrt.cli.queue_command import main
from i2v_tensorrt.remote.comfyui.client import ComfyClient
from i2v_tensorrt.remote.comfyui.server import ComfyHost, ComfyServer, free_port, start_server
from i2v_tensorrt.tests.helpers.counts import Evidence, counted
from i2v_tensorrt.tests.helpers.interrupts import heed_interrupts
from i2v_tensorrt.tests.live.conftest import PACK, filled_base
from i2v_tensorrt.tests.live.graphs import clip, gradient, node
from i2v_tensorrt.tests.live.ids import CHECKPOINT, PICTURE, SAVE

FRAMES, SIDE = 4, 64


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the small workflow in eager PyTorch, and with a picture."""
    monkeypatch.chdir(tmp_path)
    Path("clip.json").write_text(json.dumps(clip("not there.png", {SAVE: {"filename_prefix": "queue/clip"}})))
    write_pictures(Path("in"), 1)
    return tmp_path


def write_pictures(folder: Path, count: int) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"p{number:02d}.png" for number in range(count)]
    for number, path in enumerate(paths):
        gradient(blue=number * 255 // count).save(path)
    return paths


def embedded(path: Path) -> dict[str, Any]:
    """The prompt inside a video that can be played to its end."""
    with av.open(path) as video:
        stream = video.streams.video[0]
        assert (stream.width, stream.height) == (SIDE, SIDE)
        assert sum(1 for _ in video.decode(stream)) == FRAMES
        return json.loads({key.lower(): value for key, value in video.metadata.items()}["prompt"])


def test_one_workflow_with_a_picture_and_settings(
    server: ComfyServer, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["Sampler.steps=3", "Conditioning.prompt=a wave, that is = water", "I2VTRT_DDIMSampler.seed=11"]
    arguments = [argument for setting in settings for argument in ("--set", setting)]
    arguments += ["--image", "in/p00.png", "--out", "out", "--previews", "previews", "--server", server.url, "--json"]
    assert main(["clip.json", *arguments]) == 0
    shown = capsys.readouterr()
    (row,) = (json.loads(line) for line in shown.out.splitlines())
    assert (row["status"], row["error"], len(row["files"])) == ("done", None, 1)
    assert row["elapsed_s"] > 0
    prompt = embedded(here / row["files"][0])
    sampler = next(node["inputs"] for node in prompt.values() if node["class_type"] == "I2VTRT_DDIMSampler")
    assert (sampler["steps"], sampler["seed"]) == (3, 11)
    assert any(node["inputs"].get("prompt") == "a wave, that is = water" for node in prompt.values())
    stages = {line.rsplit(": ", 1)[1] for line in shown.err.splitlines()}
    assert {"Conditioning", "Sampler", "Decode", "Save"} <= stages  # the server may have kept the rest
    assert stages <= {"Picture", "Model", "Conditioning", "Sampler", "Decode", "Save"}
    previews = list((here / "previews").rglob("*.jpg"))
    assert len(previews) >= 3
    assert all(Image.open(path).width > 0 for path in previews)
    for path in (here / row["files"][0], *(server.base_directory / "output" / "queue").glob("*")):
        path.unlink()
    assert main(["clip.json", *arguments]) == 0, "what is gone there is made again, whatever the server keeps"
    assert embedded(here / row["files"][0]) == prompt


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("setting", "code", "told"),
    [
        ("Conditioning.width=65", 1, r"p00.png: error: ComfyUI refused the prompt.*node 4 \(I2VTRT_Conditioning\)"),
        ("Model.checkpoint=nothing", 1, r"p00.png: error: ComfyUI refused the prompt.*node 2 \(I2VTRT_ModelLoader\)"),
        ("Save.fsp=3", 2, ".*has no input fsp; it has"),
    ],
)
def test_what_the_server_refuses_fails_in_a_sentence(
    server: ComfyServer, setting: str, code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["clip.json", "--set", setting, "--image", "in", "--out", "out", "--server", server.url]
    assert main(arguments) == code
    shown = capsys.readouterr()
    assert re.match(told, shown.out if code == 1 else shown.err, re.DOTALL)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends processes without signals")
def test_ctrl_c_leaves_nothing_of_ours_on_the_server(server: ComfyServer, client: ComfyClient, here: Path) -> None:
    probe = {
        "1": node("LoadImage", image="x.png"),
        "2": node("PreviewImage", images=["1", 0]),
        "5": node("ProbeSteps", steps=1000, fails_at=-1),
    }
    (here / "clip.json").write_text(json.dumps(probe))
    write_pictures(here / "in", 3)
    with start_client(here, server.url) as process:
        wait_until(lambda: [len(ids) for ids in client.queued()] == [1, 2], process)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130
    assert "goes on from here" in (here / "client.log").read_text()
    assert not any(client.queued())


def start_client(folder: Path, url: str) -> subprocess.Popen[str]:
    """The command in a process of its own, over the folder's pictures."""
    command = [sys.executable, str(PACK / "run.py"), "--inside", "queue", "clip.json", "--image", "in"]
    command += ["--out", "out", "--server", url, "--json"]
    with (folder / "client.log").open("a") as log:
        return subprocess.Popen(
            command,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            preexec_fn=None if sys.platform == "win32" else heed_interrupts,
        )


def wait_until(is_so: Callable[[], bool], client: subprocess.Popen[str]) -> None:
    """Returns once it is so, as the client should bring about."""
    deadline = time.monotonic() + 600
    while not is_so():
        assert client.poll() is None, "the client ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Fleet:
    """A server that can be killed and started anew on one port, and clients of it."""

    def __init__(self, host: ComfyHost, arguments: list[str], base: Path) -> None:
        self.host, self.arguments, self.base = host, arguments, base
        self.port, self.starts = free_port(), 0
        self.stack = ExitStack()
        self.server = self.start()

    def start(self) -> ComfyServer:
        self.starts += 1
        log = self.base / f"{self.starts}.log"
        return self.stack.enter_context(
            start_server(self.host, self.base, self.arguments, log_path=log, port=self.port)
        )

    def restart(self) -> None:
        """As a crash: SIGKILL, then a new server that knows of nothing."""
        os.killpg(self.server.process.pid, signal.SIGKILL)
        self.server.process.wait(30)
        self.server = self.start()


@pytest.fixture
def fleet(host: ComfyHost, server_arguments: list[str], tmp_path: Path, tiny_folder: Path) -> Iterator[Fleet]:
    made = Fleet(host, server_arguments, filled_base(tmp_path / "base", {CHECKPOINT: tiny_folder}))
    with made.stack:
        yield made


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends processes without signals")
@counted(6, 50, slow=True)
def test_killed_in_the_middle_each_picture_has_its_video_and_has_it_once(
    fleet: Fleet, here: Path, count: int, evidence: Evidence
) -> None:
    paths, out = write_pictures(here / "in", count), here / "out"
    client = start_client(here, fleet.server.url)
    # The server in the middle; then the client, and the server behind its back.
    wait_until(lambda: len(list(out.glob("*.mp4"))) >= count // 2, client)
    fleet.restart()
    wait_until(lambda: len(list(out.glob("*.mp4"))) >= 3 * count // 4, client)
    client.kill()
    before, _ = client.communicate()
    fleet.restart()
    client = start_client(here, fleet.server.url)
    after, _ = client.communicate(timeout=900)
    assert client.returncode == 0, (here / "client.log").read_text()

    rows = [json.loads(line) for line in after.splitlines()]
    assert {row["status"] for row in rows} == {"done", "skipped"}
    assert sorted(path for row in rows for path in row["pictures"]) == [f"in/{path.name}" for path in paths]
    made = sorted(out.glob("*.mp4"))
    assert [path.stem.rsplit("-", 1)[0] for path in made] == [path.stem for path in paths]
    pictures = [embedded(path)[PICTURE]["inputs"]["image"] for path in made]
    assert [name.rsplit("-", 1)[0] for name in pictures] == [path.stem for path in paths]

    saved = len(list((fleet.base / "output" / "queue").glob("*.mp4")))
    # Each of the three kills may hit between a video's end and its being fetched.
    assert count <= saved <= count + 3
    assert not any(ComfyClient(fleet.server.url).queued())
    skipped = sum(row["status"] == "skipped" for row in rows)
    told = f"{len(made)} videos, none twice, none lost; the server saved {saved} in {fleet.starts} lives"
    evidence("queue, server and client killed", count, f"{told}, {len(before.splitlines())} told, {skipped} skipped")
