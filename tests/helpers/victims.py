"""Processes that tests start: to be killed in the middle of their work, or to ask for one engine all at once.

Each takes commands as lines of its input and answers with lines of its output; see `started`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from i2v_tensorrt.common.errors import CheckpointError
from i2v_tensorrt.common.network_source import NetworkSource
from i2v_tensorrt.common.spec import EngineSpec
from i2v_tensorrt.engine_builder.backends.registry import BACKENDS
from i2v_tensorrt.engine_builder.build.build import build_engine
from i2v_tensorrt.engine_builder.build.build_process import BuildProcess
from i2v_tensorrt.engine_builder.build.compile import BuildRequest
from i2v_tensorrt.engine_builder.store.store import EngineStore
from i2v_tensorrt.pipeline.models.registry import open_model

from . import toys
from .toys import CPU, InProcess, ToyBackend, ToySource

START = """
import runpy, sys
runpy.run_path(sys.argv[1])
from i2v_tensorrt.tests.helpers import victims
victims.ROLES[sys.argv[2]](*map(victims.Path, sys.argv[3:]))
"""
CONFTEST = Path(__file__).resolve().parents[1] / "conftest.py"
BULK_BYTES = 1 << 20


@contextmanager
def started(role: str, *paths: Path) -> Iterator[subprocess.Popen[str]]:
    """A process in that role; killed at the end if it still lives."""
    command = [sys.executable, "-c", START, str(CONFTEST), role, *map(str, paths)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        try:
            yield process
        finally:
            process.kill()


def tell(process: subprocess.Popen[str], line: str) -> None:
    """Gives a process a line."""
    assert process.stdin is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()


def heard(process: subprocess.Popen[str]) -> str:
    """The next line that a process says; fails when it has ended."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"the process ended with {process.wait()}"
    return line.strip()


def export_request(checkpoint: Path) -> BuildRequest:
    """A real network through a real exporter: a second in a child that has started, five in a new one."""
    model = open_model(checkpoint)
    network = model.components["image_encoder"].spec
    spec = EngineSpec(network, network.limits, "fp32")
    return BuildRequest(spec, model.source("image_encoder", "fp32"), BACKENDS["onnxruntime"], CPU)


def toy_request(while_building: Callable[[Path], None], version: str, log: Path | None = None) -> BuildRequest:
    """A network that compiles in no time."""
    return toys.toy_request(ToyBackend(while_building=while_building, version=version, builds_log=log))


def say(line: object) -> None:
    """Answers."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def stuck_network() -> torch.nn.Module:
    """Stands for a stage that is silent for long."""
    time.sleep(600)
    raise AssertionError("nobody ended the build")


def no_network() -> torch.nn.Module:
    """Stands for a network that cannot be loaded."""
    raise CheckpointError("There is no such network.")


def helped_network() -> torch.nn.Module:
    """Stands for a stage that has a process of its own at work, such as a compiler; says its id in the log."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as helper:
        say(helper.pid)
    raise AssertionError("nobody ended the build")


def broken_network() -> torch.nn.Module:
    """Stands for what nobody has foreseen."""
    raise ZeroDivisionError("not foreseen")


def host(store: Path, checkpoint: Path) -> None:
    """For every line, `export` or a function here, builds in a child, and says its process id once it has begun."""
    with BuildProcess() as process:

        def report(stage: str, done: float) -> None:
            if stage.startswith("load network") and process._child is not None:
                say(process._child._process.pid)

        request = export_request(checkpoint)
        say("ready")
        for line in sys.stdin:
            source = NetworkSource("tests.helpers.victims", line.strip(), {})
            chosen = request if line.strip() == "export" else replace(request, source=source)
            build_engine(chosen, EngineStore(store), process, force=True, report=report)


def replace_on_and_on(store: EngineStore, parent: int) -> None:
    """Publishes one engine over and over while its parent lives, in files large enough to be caught writing."""
    number = 0

    def bulk(folder: Path) -> None:
        (folder / "bulk.bin").write_bytes(number.to_bytes(8, "little") * (BULK_BYTES // 8))

    request = toy_request(bulk, "1.0")
    while os.getppid() == parent:
        build_engine(request, store, InProcess(), force=True)
        number += 1


def publisher(store: Path) -> None:
    """For every line makes a process that publishes without end, says its id, and then that it is gone."""
    own = os.getpid()
    say("ready")
    for _ in sys.stdin:
        pid = os.fork()
        if pid == 0:
            replace_on_and_on(EngineStore(store), own)
            os._exit(0)
        say(pid)
        os.waitpid(pid, 0)
        say("gone")


def user(store: Path) -> None:
    """For every line, which names an engine, gets that engine, runs it, and says whether it was there."""
    say("ready")
    for line in sys.stdin:
        request = toy_request(lambda folder: None, line.strip(), store / "builds.log")
        result = build_engine(request, EngineStore(store), InProcess())
        runner = request.backend.load(result.plan, request.spec, ToySource().load, CPU)
        runner.load()
        runner({"sample": torch.ones(1, 4, 1, 4, 4), "strength": torch.ones(1, 4)})
        say("found" if result.reused else "built")


def dawdler(store: Path) -> None:
    """Builds an engine, says so, and is never done."""

    def dawdle(folder: Path) -> None:
        say("building")
        time.sleep(600)

    build_engine(toy_request(dawdle, "1.0"), EngineStore(store), InProcess())


ROLES = {"host": host, "publisher": publisher, "user": user, "dawdler": dawdler}
