"""200 requests against a service whose queue takes 20, with its process killed in the middle."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROUNDS, REQUESTS, AT_ONCE, QUEUE, CLIP_S = 5, 200, 16, 20, 0.1
RUN = Path(__file__).resolve().parents[1] / "run.py"
GRAPH = {"1": {"class_type": "LoadImage", "inputs": {"image": "x"}}}


def ask_service(folder: Path) -> dict[str, Any]:
    """Rounds of requests: the slowest answer of each, and what became of all that was accepted."""
    folder.mkdir()
    rounds = [ask_once(folder / str(number)) for number in range(ROUNDS)]
    return {
        "requests": REQUESTS,
        "at_once": AT_ONCE,
        "queue": QUEUE,
        "slowest_s": [each["slowest_s"] for each in rounds],
        "median_s": [each["median_s"] for each in rounds],
        "answers": [each["answers"] for each in rounds],
        "accepted": sum(each["accepted"] for each in rounds),
        "done": sum(each["ended"].get("done", 0) for each in rounds),
        "clips": sum(each["clips"] for each in rounds),
        "same_key_again": all(each["same_key_again"] for each in rounds),
    }


def ask_once(folder: Path) -> dict[str, Any]:
    """How soon requests are answered, what became of them, and of each accepted one asked for again."""
    folder.mkdir()
    with serving(folder) as (process, url):
        first = ask_all(url, range(REQUESTS // 2))
        process.kill()
        process.wait()
    with serving(folder) as (_, url):
        second = ask_all(url, range(REQUESTS // 2, REQUESTS))
        accepted = {number: key for number, status, _, key in first + second if status == 202}
        states = Counter(ended(url, key) for key in accepted.values())
        again = {number: key for number, _, _, key in ask_all(url, list(accepted))}
    times = sorted(took_s for _, _, took_s, _ in first + second)
    return {
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


def ask_all(url: str, numbers: Iterable[int]) -> list[Answer]:
    """Asks for the clips, so many requests at a time, from one thread so that the client is not what is slow."""
    return asyncio.run(_ask_all(url, numbers))


async def _ask_all(url: str, numbers: Iterable[int]) -> list[Answer]:
    import aiohttp

    turn = asyncio.Semaphore(AT_ONCE)
    async with aiohttp.ClientSession() as session:

        async def ask(number: int) -> Answer:
            form = aiohttp.FormData()
            form.add_field("workflow", json.dumps(GRAPH), filename="w.json")
            form.add_field("image", json.dumps({"number": number, "takes_s": CLIP_S}), filename="p.png")
            async with turn:
                started = time.monotonic()
                async with session.post(f"{url}/clips", data=form) as answer:
                    told = await answer.json()
                    return number, answer.status, time.monotonic() - started, told.get("key", "")

        return list(await asyncio.gather(*(ask(number) for number in numbers)))


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
