"""Makes the repository importable as `i2v_tensorrt` without putting its root on sys.path.

The root on sys.path would shadow ComfyUI's own `nodes` module.
"""

import importlib.util
import sys
from pathlib import Path

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
