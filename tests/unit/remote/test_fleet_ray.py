"""A fleet on four pretended nodes: nodes die and come, the driver is killed, and every clip comes out once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from i2v_tensorrt.remote.batch.records import HALF_WRITTEN_S, RECORDS, Records
from i2v_tensorrt.remote.fleet.attempt import TRIES, seen_tries
from i2v_tensorrt.remote.fleet.status import fleet_status
from i2v_tensorrt.tests.helpers.fake_comfy import GRAPH
from i2v_tensorrt.tests.helpers.interrupts import wait_for
from i2v_tensorrt.tests.helpers.ray_cluster import KIND, PretendedCluster, pretended_cluster

pytest.importorskip("ray", reason="python -m pip install -r remote/fleet/requirements.txt")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="Ray has clusters of several nodes on Linux alone"),
]
RUN = Path(__file__).resolve().parents[3] / "run.py"
CLIPS, DEADLY, BAD, FREE = 60, 7, 11, 44
"""How many pictures, the one that ends its worker, that of which no clip can be made, and how many wait for nothing."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[PretendedCluster]:
    with pretended_cluster() as running:
        yield running


class Batch:
    """A folder of pictures, and the command over them."""

    def __init__(self, folder: Path, address: str, takes_s: float) -> None:
        self.folder, self.out, self.address = folder, folder / "out", address
        self.gate = folder / "gate"
        (folder / "in").mkdir()
        (folder / "graph.json").write_text(json.dumps(GRAPH))
        for number in range(CLIPS):
            wish: dict[str, Any] = {"number": number, "takes_s": takes_s}
            wish |= {"waits_for": str(self.gate)} if number >= FREE else {}
            wish |= {"dies": True} if number == DEADLY else {"fails": "no clip of this"} if number == BAD else {}
            (folder / "in" / f"p{number:02d}.png").write_text(json.dumps(wish))

    def start(self, *words: str) -> subprocess.Popen[str]:
        """The command in a process of its own."""
        command = [sys.executable, str(RUN), "--inside", "fleet", *words, "graph.json", "--image", "in"]
        command += ["--out", "out", "--maker", "stand-in", "--address", self.address, "--json"]
        with (self.folder / "driver.log").open("a") as log:
            return subprocess.Popen(command, cwd=self.folder, text=True, stdout=subprocess.PIPE, stderr=log)

    def made(self) -> list[Path]:
        """The clips that there are."""
        return sorted(self.out.glob("*.mp4"))

    def reached(self, count: int, driver: subprocess.Popen[str]) -> None:
        """Waits until so many clips are there."""
        wait_for(lambda: len(self.made()) >= count or driver.poll() is not None)
        assert driver.poll() is None, (self.folder / "driver.log").read_text()

    def check_whole(self) -> None:
        """A clip for each picture that has one, made of it, and a commit for each."""
        names = [f"p{number:02d}" for number in range(CLIPS) if number not in (DEADLY, BAD)]
        assert [path.name.rsplit("-", 1)[0] for path in self.made()] == names
        for name, path in zip(names, self.made(), strict=True):
            assert path.read_bytes().partition(b"\n")[2] == (self.folder / "in" / f"{name}.png").read_bytes()
        keys = list(Records(self.out).keys())
        assert len(keys) == len(names) and all(Records(self.out).finished(key) for key in keys)


def works_on(node: Any, out: Path) -> bool:
    """Whether a worker of the node is at a clip."""
    return any(f"-{node.node_id[:8]}/" in each.worker for each in seen_tries(out))


@contextmanager
def nodes_of(cluster: PretendedCluster, *kinds: str) -> Iterator[list[Any]]:
    """Nodes that are gone afterwards, whatever the test found, with those that it adds to them."""
    nodes = [cluster.add(kind) for kind in kinds]
    try:
        yield nodes
    finally:
        for node in nodes:
            cluster.kill(node)


def half_written(out: Path) -> list[Path]:
    """The files beside the tries that are not whole."""
    return [path for path in (out / RECORDS).rglob("*.part") if path.parent.parent.name != TRIES]


def test_every_clip_comes_out_once_whatever_is_lost(cluster: PretendedCluster, tmp_path: Path) -> None:
    with nodes_of(cluster, *[KIND] * 4) as nodes:
        check_a_batch_with_losses(cluster, nodes, tmp_path)


def check_a_batch_with_losses(cluster: PretendedCluster, nodes: list[Any], tmp_path: Path) -> None:
    """Every clip comes out once although two nodes come and go and the driver is killed."""
    batch = Batch(tmp_path, cluster.address, takes_s=0.4)
    with batch.start() as first:
        batch.reached(6, first)
        cluster.kill(nodes.pop(0))
        batch.reached(14, first)
        nodes.append(cluster.add())
        wait_for(lambda: works_on(nodes[-1], batch.out) or first.poll() is not None, 120)
        assert first.poll() is None, (tmp_path / "driver.log").read_text()
        first.kill()
    batch.gate.touch()
    committed = len(list(Records(batch.out).keys()))
    before = {path.name: path.stat().st_mtime_ns for path in batch.made()}
    with batch.start() as second:
        out, _ = second.communicate(timeout=120)
    assert second.returncode == 1, (tmp_path / "driver.log").read_text()
    rows = [json.loads(line) for line in out.splitlines()]
    errors = {Path(row["picture"]).stem: row["error"] for row in rows if row["status"] == "error"}
    assert errors.keys() == {f"p{DEADLY:02d}", f"p{BAD:02d}"}
    assert errors[f"p{BAD:02d}"] == "no clip of this"
    assert errors[f"p{DEADLY:02d}"].startswith("its worker ended 3 times while it made this: ")
    assert CLIPS - len(before) <= len(rows) <= CLIPS - committed, "what was committed is not made again"
    batch.check_whole()
    assert {path.name: path.stat().st_mtime_ns for path in batch.made() if path.name in before} == before
    status = fleet_status(batch.out)
    assert status.counts() | {"lost": 0} == {"waiting": 0, "running": 0, "done": 58, "failed": 2, "lost": 0}
    assert sorted(status.failed.values()) == sorted(errors.values())
    long_ago = time.time() - 2 * HALF_WRITTEN_S
    for path in half_written(batch.out):  # whoever was killed may have been at one
        os.utime(path, (long_ago, long_ago))
    with batch.start() as third:
        out, _ = third.communicate(timeout=120)
    assert [json.loads(line)["status"] for line in out.splitlines()] == ["error", "error"]
    assert half_written(batch.out) == []


def test_engines_are_built_once_for_each_kind_of_gpu(cluster: PretendedCluster, tmp_path: Path) -> None:
    batch = Batch(tmp_path, cluster.address, takes_s=0.0)
    graph = {**GRAPH, "3": {"class_type": "Loader", "inputs": {"on_missing": "auto"}}}
    (tmp_path / "graph.json").write_text(json.dumps(graph))
    counts = []
    with nodes_of(cluster, "A", "B", "A"):
        for _ in range(2):
            with batch.start("prebuild") as driver:
                out, _ = driver.communicate(timeout=120)
            assert driver.returncode == 0, (tmp_path / "driver.log").read_text()
            counts.append(sorted(row["worker"].rsplit("/", 1)[1] for row in map(json.loads, out.splitlines())))
    assert counts == [["A-0", "B-0"], []]
    assert batch.made() == [] and fleet_status(batch.out).counts()["done"] == 0
