"""The process of one device of several that share a clip's tokens. Run as a script, never imported by the pack."""

import importlib
import importlib.util
import sys
from pathlib import Path

ALIAS = "i2v_tensorrt"


def main() -> None:
    """Serves until the input ends, which is also how a dead host is noticed."""
    alias_pack()
    importlib.import_module(f"{ALIAS}.runtime.devices.rank").serve()


def alias_pack() -> None:
    """Makes the pack importable by a fixed name, whatever its folder's name."""
    root, here = Path(__file__).resolve().parent.parent.parent, Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != here]
    spec = importlib.util.spec_from_file_location(ALIAS, root / "__init__.py", submodule_search_locations=[str(root)])
    if spec is None or spec.loader is None:
        raise ImportError(f"{root} holds no package")
    package = importlib.util.module_from_spec(spec)
    sys.modules[ALIAS] = package
    spec.loader.exec_module(package)


if __name__ == "__main__":
    main()
