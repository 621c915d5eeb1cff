"""Two commands for a fresh machine: `python run.py demo` and `python run.py test`.

Only the door: any Python can read it, and say in a sentence that it is too old. The commands'
work is in cli/main.py, and the set-up of their environment in cli/environment.py.
"""

import sys

if sys.version_info < (3, 10):  # noqa: UP036 - older ones do get here
    sys.exit("I2V TensorRT needs Python 3.10 or newer; this is Python %d.%d." % sys.version_info[:2])  # noqa: UP031

import importlib
import importlib.util
import os
import signal
from pathlib import Path

ROOT = Path(__file__).resolve().parent

# Loaded as tests/conftest.py does: the root itself on sys.path would shadow ComfyUI's `nodes`.
# At module level, so that the processes that a job spawns have the alias too.
sys.path[:] = [entry for entry in sys.path if Path(entry or os.curdir).resolve() != ROOT]
if "i2v_tensorrt" not in sys.modules:
    spec = importlib.util.spec_from_file_location(
        "i2v_tensorrt", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    if spec is None or spec.loader is None:
        sys.exit("The folder of run.py should hold the pack's __init__.py, and has none that can be loaded.")
    sys.modules["i2v_tensorrt"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["i2v_tensorrt"])

if __name__ == "__main__":
    # A request to end is answered as Ctrl-C is: children end too, and unfinished files are removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(importlib.import_module("i2v_tensorrt.cli.main").main(sys.argv[1:]))
