"""Makes the repository importable as `i2v_tensorrt` without putting its root on sys.path.

The root on sys.path would shadow ComfyUI's own `nodes` module.
"""

import importlib.util
import math
import signal
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent


def _alias_package() -> None:
    spec = importlib.util.spec_from_file_location(
        "i2v_tensorrt", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"{ROOT} holds no package")
    package = importlib.util.module_from_spec(spec)
    sys.modules["i2v_tensorrt"] = package
    spec.loader.exec_module(package)


if "i2v_tensorrt" not in sys.modules:
    _alias_package()


TORTURE = "torture"
TORTURE_S = 4 * 3600
"""How long the full counts may take together; what is not done by then has failed."""
TIME_IS_UP = f"not done within {TORTURE_S / 3600:g} hours, which is as long as the full counts may take together"
BY_NAME = (TORTURE, "browser")
NEEDS = {"live": "comfy", "browser": "browser", "gpu": "gpu"}
"""The marker of each test in one of these folders."""
EVIDENCE = "evidence"
DEADLINE = pytest.StashKey[float]()


def pytest_configure(config: pytest.Config) -> None:
    """A worker's live tests are told to the process that sums up; what tests compute is exact from the start."""
    from i2v_tensorrt.common.vector_math import settle_vector_math

    settle_vector_math()
    if hasattr(config, "workerinput"):
        from i2v_tensorrt.cli.test_command import LiveTests

        config.pluginmanager.register(LiveTests())


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks what a folder needs; leaves out the full counts and the browser unless the command line names them."""
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0] if TESTS in item.path.parents else ""
        if folder in NEEDS:
            item.add_marker(NEEDS[folder])
    unnamed = [marker for marker in BY_NAME if marker not in config.option.markexpr]
    left_out = [item for item in items if any(item.get_closest_marker(marker) for marker in unnamed)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    if TORTURE in config.option.markexpr:
        items.sort(key=lambda item: EVIDENCE not in getattr(item, "fixturenames", ()))  # what has a row comes first
        config.stash[DEADLINE] = time.monotonic() + TORTURE_S
        if hasattr(signal, "SIGALRM"):
            signal.signal(signal.SIGALRM, lambda *_: pytest.fail(TIME_IS_UP, pytrace=False))
            signal.alarm(TORTURE_S)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fails what would begin after the time that the full counts have."""
    if time.monotonic() > item.config.stash.get(DEADLINE, math.inf):
        pytest.fail(TIME_IS_UP, pytrace=False)


@pytest.fixture(scope="session")
def host() -> Any:
    """The ComfyUI of this machine, a `ComfyHost`."""
    from i2v_tensorrt.remote.comfyui.server import find_comfyui, not_found_reason

    found = find_comfyui()
    if found is None:
        pytest.skip(not_found_reason())
    return found


@pytest.fixture
def evidence(record_property: Callable[[str, object], None]) -> Callable[[str, int, str], None]:
    """Notes what a test with a count has found: its name, how many, and what came of them."""
    return lambda name, count, found: record_property(EVIDENCE, (name, count, found))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Ends a run of the full counts with a row for each."""
    if TORTURE not in config.option.markexpr:
        return
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, ())]
    terminalreporter.section("what was found")
    wrong = [report for kind in ("failed", "error") for report in terminalreporter.stats.get(kind, ())]
    for report in wrong:
        terminalreporter.write_line(f"FAILED {report.nodeid}: {str(report.longrepr).splitlines()[-1][:200]}")
    for name, count, found in (value for report in reports for key, value in report.user_properties if key == EVIDENCE):
        terminalreporter.write_line(f"{name:<44} {count:>6}  {found}")


def pytest_collection_finish() -> None:
    """One thread: networks this small only wait for a second one, for minutes where other work goes on."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint of random weights in the published layout; read it, never change it."""
    from i2v_tensorrt.pipeline.dummies.i2vgen_xl import write_tiny_checkpoint

    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny-random")


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library by which system calls of a child process fail; skips where there is none."""
    from i2v_tensorrt.tests.helpers.faults import compiled

    return compiled(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="session")
def tiny_svd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Video Diffusion of random weights; read it, never change it."""
    from i2v_tensorrt.pipeline.dummies.svd import write_tiny_svd

    return write_tiny_svd(tmp_path_factory.mktemp("checkpoints") / "tiny-svd")


@pytest.fixture(scope="session")
def tiny_wan(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives a tiny Wan of random weights of one of `tiny_wan.KINDS`; read it, never change it."""
    from i2v_tensorrt.pipeline.dummies.wan import write_tiny_wan

    return cache(lambda kind: write_tiny_wan(tmp_path_factory.mktemp("checkpoints") / f"tiny-{kind}", kind))


@pytest.fixture(scope="session")
def tiny_dynamicrafter(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives a tiny DynamiCrafter of random weights of one of the dummies' kinds; read it, never change it."""
    from i2v_tensorrt.pipeline.dummies.dynamicrafter import write_tiny_dynamicrafter

    folder = tmp_path_factory.mktemp("checkpoints")
    return cache(lambda kind: write_tiny_dynamicrafter(folder / f"tiny-dynamicrafter-{kind}", kind))
