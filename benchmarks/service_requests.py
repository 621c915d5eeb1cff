"""200 requests against a service whose queue takes 20, with its process killed in the middle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import local
from typing import Any

REQUESTS, AT_ONCE, QUEUE, CLIP_S = 200, 16, 20, 0.1
RUN = Path(__file__).resolve().parents[1] / "run.py"
GRAPH = {"1": {"class_type": "LoadImage", "inputs": {"image": "x"}}}


def ask_service(folder: Path) -> dict[str, Any]:
    """How soon requests are answered, what became of them, and of each accepted one asked for again."""
    folder.mkdir()
    sessions = local()
    with serving(folder) as (process, url):
        first = ask_all(url, sessions, range(REQUESTS // 2))
        process.kill()
        process.wait()
    with serving(folder) as (_, url):
        second = ask_all(url, sessions, range(REQUESTS // 2, REQUESTS))
        accepted = {number: key for number, status, _, key in first + second if status == 202}
        states = Counter(ended(url, key) for key in accepted.values())
        again = {number: key for number, _, _, key in ask_all(url, sessions, list(accepted))}
    times = sorted(took_s for _, _, took_s, _ in first + second)
    return {
        "requests": len(times),
        "at_once": AT_ONCE,
        "queue": QUEUE,
        "answers": {str(status): count for status, count in Counter(row[1] for row in first + second).items()},
        "slowest_s": round(times[-1], 4),
        "median_s": round(times[len(times) // 2], 4),
        "accepted": len(accepted),
        "ended": dict(states),
        "clips": len(list((folder / "out").glob("*.mp4"))),
        "same_key_again": again == accepted,
    }


Answer = tuple[int, int, float, str]
"""The request's number, the answer's status, its seconds, and the clip's key."""


def ask_all(url: str, sessions: Any, numbers: Any) -> list[Answer]:
    """Asks for the clips, so many requests at a time."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda number: ask(url, sessions, number), numbers))


def ask(url: str, sessions: Any, number: int) -> Answer:
    """Asks for a clip, by a connection of this thread's own."""
    import requests

    if not hasattr(sessions, "session"):
        sessions.session = requests.Session()
        sessions.session.trust_env = False
    files = {"workflow": ("w.json", json.dumps(GRAPH))}
    files["image"] = ("p.png", json.dumps({"number": number, "takes_s": CLIP_S}))
    started = time.monotonic()
    answer = sessions.session.post(f"{url}/clips", files=files, timeout=60)
    return number, answer.status_code, time.monotonic() - started, answer.json().get("key", "")


def ended(url: str, key: str) -> str:
    """The clip's last state."""
    import requests

    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        state = requests.get(f"{url}/clips/{key}", timeout=60).json().get("status", "unknown")
        if state not in ("waiting", "running"):
            return str(state)
        time.sleep(0.05)
    return "late"


@contextmanager
def serving(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`run.py serve` with a stand-in for a worker, and its address."""
    command = [sys.executable, str(RUN), "--inside", "serve", "--out", str(folder / "out"), "--port", "0"]
    command += ["--queue", str(QUEUE), "--address", "local", "--maker", "stand-in"]
    with (folder / "serve.log").open("a") as log:
        process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=log, env=dict(os.environ))  # noqa: S603
    try:
        assert process.stdout is not None  # noqa: S101 - a pipe was asked for
        yield process, process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait(60)
