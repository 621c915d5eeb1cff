"""A worker's ComfyUI that answers, fails, breaks off and ends, over a stand-in for it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import pytest

from i2v_tensorrt.common.errors import InputError
from i2v_tensorrt.remote.batch.workflow import Place, Workflow
from i2v_tensorrt.remote.comfyui.errors import ServerError
from i2v_tensorrt.remote.comfyui.server import ComfyServer
from i2v_tensorrt.remote.fleet.clip_job import ClipJob
from i2v_tensorrt.remote.fleet.comfy_maker import ComfyMaker
from i2v_tensorrt.remote.fleet.maker import BrokenWorkerError, CrashedError, WorkerSpec
from i2v_tensorrt.remote.fleet.shared_folder import save_workflow
from i2v_tensorrt.tests.helpers.fake_comfy import GRAPH, FakeComfy, running


class MakerOf(ComfyMaker):
    """A maker whose server is there: a stand-in's address, and a process that ends after some seconds."""

    def __init__(self, folder: Path, url: str, ends_after_s: float) -> None:
        super().__init__(WorkerSpec(str(folder / "out"), clip_s=30.0))
        command = [sys.executable, "-c", f"import time; time.sleep({ends_after_s}); raise SystemExit(7)"]
        self.process = subprocess.Popen(command)
        self.is_closed = False
        self._only = ComfyServer(url, self.process, folder, folder / "log")

    def _running(self) -> ComfyServer:
        return self._only

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def fake() -> Iterator[FakeComfy]:
    with running() as server:
        yield server


MakeMaker = Callable[[float], MakerOf]


@pytest.fixture
def maker_of(fake: FakeComfy, tmp_path: Path) -> Iterator[MakeMaker]:
    with opened(fake, tmp_path) as make:
        yield make


@contextmanager
def opened(fake: FakeComfy, folder: Path) -> Iterator[MakeMaker]:
    makers: list[MakerOf] = []

    def make(ends_after_s: float) -> MakerOf:
        makers.append(MakerOf(folder, fake.url, ends_after_s))
        return makers[-1]

    yield make
    for maker in makers:
        maker.process.kill()
        maker.process.wait()


@pytest.fixture
def job(tmp_path: Path) -> ClipJob:
    path = tmp_path / "p00.png"
    path.write_bytes(b"a picture")
    digest = save_workflow(tmp_path / "out", Workflow(GRAPH, Place("1", "image")))
    return ClipJob("k" * 64, "p00-kkkkkkkk", str(path), sha256(b"a picture").hexdigest(), digest)


def test_a_job_becomes_its_files(fake: FakeComfy, maker_of: MakeMaker, job: ClipJob, tmp_path: Path) -> None:
    (path,) = maker_of(60).make(job, tmp_path)
    assert path.read_bytes() in fake.files.values()
    (name,) = fake.saved
    assert name.startswith("p00-kkkkkkkk-") and name.endswith(".png")


def test_a_refusal_and_a_failed_node_are_the_job_s(fake: FakeComfy, maker_of: MakeMaker, job: ClipJob) -> None:
    fake.refuses = lambda prompt: "not this one"
    maker = maker_of(60)
    with pytest.raises(InputError, match="not this one"):
        maker.make(job, Path())
    fake.faults["POST /upload"].append("500")
    with pytest.raises(ServerError, match="answered 500"):
        maker.make(job, Path())
    assert not maker.is_closed


def test_connections_break_before_a_comfyui_has_ended(fake: FakeComfy, maker_of: MakeMaker, job: ClipJob) -> None:
    fake.faults["POST /upload"].append("drop")
    maker = maker_of(1.0)
    with pytest.raises(CrashedError, match="ended with status 7 while it made this"):
        maker.make(job, Path())
    assert maker.is_closed


def test_a_comfyui_that_stops_answering_is_given_up(
    fake: FakeComfy, maker_of: MakeMaker, job: ClipJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("i2v_tensorrt.remote.fleet.comfy_maker.END_S", 0.1)
    fake.faults["POST /upload"].append("drop")
    maker = maker_of(600)
    with pytest.raises(CrashedError, match="stopped answering"):
        maker.make(job, Path())
    assert maker.is_closed


def test_without_a_comfyui_no_clip_is_made(job: ClipJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COMFYUI_DIR", str(tmp_path))
    with pytest.raises(BrokenWorkerError, match="COMFYUI_DIR should name a ComfyUI folder"):
        ComfyMaker(WorkerSpec(str(tmp_path / "out"))).make(job, tmp_path)
