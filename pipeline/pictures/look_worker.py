"""The process in which a stranger's ONNX file is looked at: one request as JSON in, its contract as JSON out.

Whatever the file does to the libraries that read it, a crash or memory without end, stays in here. Run as a script by
`look`, never imported by the pack.
"""

import importlib
import json
import os
import runpy
import sys
from pathlib import Path

ALIAS = "i2v_tensorrt"


def main() -> None:
    """Answers the one request on its input."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries' prints are no answers
    request = json.loads(sys.stdin.readline())
    _limit_memory(request["most_bytes"])
    _name_pack()
    find = importlib.import_module(f"{ALIAS}.pipeline.pictures.find_contract")
    contracts = importlib.import_module(f"{ALIAS}.pipeline.pictures.contract")
    errors = importlib.import_module(f"{ALIAS}.common.errors")
    try:
        found = find.find_contract(Path(request["path"]), request["layout"], request["output"])
    except errors.InputError as error:
        answer = {"error": str(error)}
    except MemoryError:
        answer = {
            "error": f"Expected a network that runs within {request['most_bytes'] >> 30} GiB, found a larger one."
        }
    else:
        answer = {"contract": contracts.contract_to_dict(found)}
    answers.write(json.dumps(answer) + "\n")
    answers.close()
    os._exit(0)  # at once: a library that the file has upset need not tidy up


def _limit_memory(most_bytes: int) -> None:
    """Bounds the memory that the process may ask for, where the system can."""
    try:
        import resource
    except ImportError:  # Windows has none
        return
    resource.setrlimit(resource.RLIMIT_AS, (most_bytes, most_bytes))


def _name_pack() -> None:
    """Makes the pack importable by a fixed name, whatever its folder's name, as run.py does where it is imported."""
    here = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != here]
    runpy.run_path(str(here.parent.parent / "run.py"), run_name="i2v_tensorrt_run")


if __name__ == "__main__":
    main()
