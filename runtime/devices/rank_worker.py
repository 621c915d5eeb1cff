"""The process of one device of several that share a clip's tokens. Run as a script, never imported by the pack."""

import runpy
import sys
from importlib import import_module
from pathlib import Path

RANK = "i2v_tensorrt.runtime.devices.rank"


def main() -> None:
    """Serves until the input ends, which is also how a dead host is noticed."""
    name_pack()
    import_module(RANK).serve()


def name_pack() -> None:
    """Makes the pack importable by a fixed name, whatever its folder's name, as run.py does where it is imported."""
    here = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != here]
    runpy.run_path(str(here.parent.parent / "run.py"), run_name="i2v_tensorrt_run")


if __name__ == "__main__":
    main()
