"""Makes the repository importable as `i2v_tensorrt` without putting its root on sys.path.

The root on sys.path would shadow ComfyUI's own `nodes` module.
"""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


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


def pytest_collection_finish() -> None:
    """One thread: networks this small only wait for a second one, for minutes where other work goes on."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint of random weights in the published layout; read it, never change it."""
    from i2v_tensorrt.pipeline.models.tiny import write_tiny_checkpoint

    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny-random")
