"""The process that builds run in: requests as JSON lines in, progress and results as JSON lines out.

A crash, a leak or a full memory stays in here. Run as a script by `build_process`, never imported by the pack.
"""

import importlib
import json
import os
import queue
import runpy
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, TextIO

ALIAS = "i2v_tensorrt"


def main() -> None:
    """Answers one request after another until its input ends, which is also how a dead host is noticed."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    _name_pack()
    requests: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_hear, args=(requests,), daemon=True).start()
    try:
        while True:
            request = json.loads(requests.get())
            log_path = Path(request.pop("log"))
            _log_to(log_path)
            _answer(request, log_path, answers)
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # at once, for the thread that waits for requests would disturb an orderly end


def _hear(requests: queue.Queue[str]) -> None:
    """Reads requests; at the end of the input the process ends, since no host waits for an answer."""
    for line in sys.stdin:
        requests.put(line)
    if os.name == "posix" and os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)  # with the compilers that the build may have started
    os._exit(0)


def _log_to(path: Path) -> None:
    """Sends the prints of libraries, native code's too, to the build's log, and not among the answers."""
    with path.open("a", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)


def _answer(request: dict[str, Any], log_path: Path, answers: TextIO) -> None:
    builds = importlib.import_module(f"{ALIAS}.engine_builder.build.part_builds")
    errors = importlib.import_module(f"{ALIAS}.common.errors")
    try:
        result = builds.answer(request, log_path, lambda stage, done: _tell(answers, {"stage": stage, "done": done}))
    except errors.I2VError as error:
        _tell(answers, {"error": str(error), "kind": type(error).__name__})
    except MemoryError:
        _tell(answers, {"error": "The build ran out of memory.", "kind": "EngineError"})
    else:
        _tell(answers, {"result": result})


def _tell(answers: TextIO, message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")


def _name_pack() -> None:
    """Makes the pack importable by a fixed name, whatever its folder's name, as run.py does where it is imported."""
    here = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != here]
    runpy.run_path(str(here.parent.parent / "run.py"), run_name="i2v_tensorrt_run")


if __name__ == "__main__":
    main()
