"""A fleet whose worker, an actor of Ray, has a real ComfyUI, which is killed in the middle."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import av
import psutil
import pytest

from i2v_tensorrt.remote.fleet.attempt import seen_tries
from i2v_tensorrt.tests.helpers.interrupts import wait_for
from i2v_tensorrt.tests.live.conftest import PACK
from i2v_tensorrt.tests.live.graphs import clip, gradient
from i2v_tensorrt.tests.live.ids import LOADER, SAMPLER, SAVE

pytest.importorskip("ray", reason="python -m pip install -r remote/fleet/requirements.txt")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="the fleet is for Linux")]


def is_server(process: psutil.Process) -> bool:
    """Whether it is a ComfyUI; one that ends meanwhile is none."""
    try:
        return "main.py" in process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False


CHANGES = {LOADER: {"checkpoint": "i2v-demo"}, SAMPLER: {"steps": 12}, SAVE: {"filename_prefix": "fleet/clip"}}


@pytest.mark.usefixtures("host")
def test_a_killed_comfyui_costs_no_clip_and_nothing_is_left(
    base_directory: Path, server_arguments: list[str], tmp_path: Path
) -> None:
    (tmp_path / "clip.json").write_text(json.dumps(clip("not there.png", CHANGES)))
    (tmp_path / "in").mkdir()
    for number in range(3):
        gradient(blue=80 * number).save(tmp_path / "in" / f"p{number}.png")
    command = [sys.executable, str(PACK / "run.py"), "--inside", "fleet", "clip.json", "--image", "in", "--out", "out"]
    command += ["--base", str(base_directory), *(f"--comfy-arg={word}" for word in server_arguments), "--json"]
    command += ["--workers", "1", "--cpus-each", "1"]
    out = tmp_path / "out"
    with (
        (tmp_path / "driver.log").open("w") as log,
        subprocess.Popen(command, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=log) as driver,
    ):
        wait_for(lambda: driver.poll() is not None or (list(out.glob("*.mp4")) and list(seen_tries(out))), 300)
        family = psutil.Process(driver.pid).children(recursive=True)
        killed = [process for process in family if is_server(process)]
        for process in killed:
            process.kill()
        told, _ = driver.communicate(timeout=300)
    assert driver.returncode == 0, (tmp_path / "driver.log").read_text()
    rows = [json.loads(line) for line in told.splitlines()]
    assert [row["status"] for row in rows] == ["done"] * 3 and len(killed) == 1
    for row in rows:
        with av.open(str(tmp_path / row["files"][0])) as video:
            assert sum(1 for _ in video.decode(video.streams.video[0])) == 4
    wait_for(lambda: not any(process.is_running() for process in family))
    assert list((base_directory / "input").glob("p?-*")) == []
