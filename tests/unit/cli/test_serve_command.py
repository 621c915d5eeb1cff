"""`run.py serve` over HTTP: a bounded queue that outlasts its process, and one clip for the same request."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import requests

from i2v_tensorrt.cli.serve_command import TOKEN
from i2v_tensorrt.remote.fleet.door import MOST_BYTES
from i2v_tensorrt.tests.helpers.fake_comfy import GRAPH
from i2v_tensorrt.tests.helpers.interrupts import wait_for

pytest.importorskip("aiohttp", reason="python -m pip install -r remote/fleet/requirements.txt")
pytest.importorskip("ray", reason="python -m pip install -r remote/fleet/requirements.txt")
RUN = Path(__file__).resolve().parents[3] / "run.py"


class Service:
    """A service of one worker that makes stand-ins for clips; requests to it."""

    def __init__(self, url: str, process: subprocess.Popen[str]) -> None:
        self.url, self.process = url, process
        self.session = requests.Session()
        self.session.trust_env = False

    def post(self, number: int = 0, *, name: str = "p.png", graph: Any = None, **wish: Any) -> requests.Response:
        """Asks for a clip of a picture that is a wish."""
        files = {"workflow": ("w.json", json.dumps(GRAPH if graph is None else graph))}
        files["image"] = (name, json.dumps({"number": number, **wish}))
        return requests.post(f"{self.url}/clips", files=files, timeout=60)

    def get(self, key: str, *more: str) -> requests.Response:
        """Looks at a clip, or fetches its file."""
        return self.session.get("/".join([self.url, "clips", key, *more]), timeout=60)

    def state(self, key: str) -> str:
        """The clip's state."""
        return self.get(key).json()["status"]

    def ended(self, key: str) -> dict[str, Any]:
        """The clip once it is done or has failed."""
        wait_for(lambda: self.state(key) in ("done", "failed"))
        return self.get(key).json()


@contextmanager
def serving(folder: Path, *words: str, **environment: str) -> Iterator[Service]:
    """The command in a process of its own, which ends with the block."""
    command = [sys.executable, str(RUN), "--inside", "serve", "--out", str(folder), "--port", "0"]
    command += ["--address", "local", "--maker", "stand-in", *words]
    known = {**os.environ, **environment}
    with (folder.parent / "serve.log").open("a") as log:
        process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=log, env=known)
    try:
        assert process.stdout is not None
        yield Service(process.stdout.readline().strip(), process)
    finally:
        process.terminate()
        process.communicate(timeout=60)
        assert "Traceback" not in (folder.parent / "serve.log").read_text()


def test_a_clip_is_asked_for_looked_at_and_fetched_and_the_same_request_is_one_clip(tmp_path: Path) -> None:
    with serving(tmp_path / "out") as service:
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: service.post(1, takes_s=0.5), range(4)))
        (key,) = {answer.json()["key"] for answer in answers}
        assert {answer.status_code for answer in answers} == {202}
        assert answers[0].headers["Location"] == f"/clips/{key}"
        state = service.ended(key)
        assert (state["status"], state["error"], len(state["files"])) == ("done", None, 1)
        again = service.post(1, takes_s=0.5)
        assert (again.status_code, again.json()) == (200, state)
        assert b'"number": 1' in service.get(key, "file").content
        assert service.get(key, "file?number=2").status_code == 404
        (path,) = (tmp_path / "out").glob("*.mp4")
        path.unlink()
        assert service.get(key).status_code == 404, "what somebody removed is no longer told"
        assert service.post(1, takes_s=0.5).status_code == 202
        assert service.ended(key)["status"] == "done" and path.is_file()


def test_a_full_queue_refuses_and_what_it_took_is_made(tmp_path: Path) -> None:
    with serving(tmp_path / "out", "--queue", "2") as service:
        first = service.post(0, takes_s=60).json()["key"]
        wait_for(lambda: service.state(first) == "running")
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(service.post, range(1, 9)))
        assert Counter(answer.status_code for answer in answers) == {202: 2, 429: 6}
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert int(refused.headers["Retry-After"]) >= 1 and "2 wait" in refused.json()["error"]
        assert service.post(0, takes_s=60).status_code == 202, "one that is there needs no room"
        assert service.get(first, "file").status_code == 409
        taken = [answer.json()["key"] for answer in answers if answer.status_code == 202]
        cancelled = requests.delete(f"{service.url}/clips/{taken[0]}", timeout=60)
        assert cancelled.status_code == 202
        assert service.ended(taken[0])["error"] == "it was cancelled"
        assert requests.delete(f"{service.url}/clips/{first}", timeout=60).status_code == 202
        assert service.ended(first)["error"] == "it was cancelled"
        assert service.ended(taken[1])["status"] == "done"
        assert requests.delete(f"{service.url}/clips/{taken[1]}", timeout=60).status_code == 409
        failed = service.post(9, fails="no clip of this").json()["key"]
        assert (service.ended(failed)["status"], service.get(failed).json()["error"]) == ("failed", "no clip of this")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends processes without signals")
def test_a_killed_service_loses_nothing_that_it_took(tmp_path: Path) -> None:
    with serving(tmp_path / "out") as service:
        keys = [service.post(number, takes_s=0.2).json()["key"] for number in range(8)]
        wait_for(lambda: len(list((tmp_path / "out").glob("*.mp4"))) >= 2)
        service.process.send_signal(signal.SIGKILL)
        service.process.wait(60)
    made = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.mp4")}
    with serving(tmp_path / "out") as service:
        assert {service.ended(key)["status"] for key in keys} == {"done"}
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.mp4")}
    assert len(after) == 8 and {name: after[name] for name in made} == made


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends processes without signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_an_interrupted_service_ends_at_once_in_the_midst_of_requests(tmp_path: Path, number: signal.Signals) -> None:
    def keep_asking(first: int) -> None:
        with suppress(requests.RequestException):
            for each in range(first, first + 1000):
                service.post(each)

    with serving(tmp_path / "out") as service, ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(keep_asking, 1000 * each) for each in range(4)]
        wait_for(lambda: len(list((tmp_path / "out").glob("*.mp4"))) >= 3)
        service.process.send_signal(number)
        assert service.process.wait(45) == 0
        assert all(future.result() is None for future in futures)


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("serve") / "out", **{TOKEN: "secret"}) as service:
        service.session.headers["Authorization"] = "Bearer secret"
        yield service


FILE = ("w.json", json.dumps(GRAPH))


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (None, "Expected a form"),
        ({"image": ("p.png", b"x")}, "Expected the field workflow"),
        ({"workflow": ("w.json", "{")}, "should hold JSON"),
        ({"workflow": ("w.json", '{"nodes": []}')}, r"Export \(API\)"),
        ({"workflow": ("w.json", json.dumps({"prompt": GRAPH, "extra_data": {"key": 1}}))}, "without extra_data"),
        ({"workflow": FILE, "image": ("p.exe", b"x")}, "Expected a picture's name"),
        ({"workflow": FILE, "set": (None, "7.x=1")}, "no node for 7.x"),
        ({"workflow": FILE, "image": ("p.png", b"x"), "into": (None, "2.picture")}, "has no input picture"),
    ],
    ids=["nothing", "no workflow", "no JSON", "a page's", "extra data", "no picture", "no node", "no input"],
)
def test_a_wrong_request_is_refused_in_a_sentence(standing: Service, files: Any, told: str) -> None:
    answer = standing.session.post(f"{standing.url}/clips", files=files, timeout=60)
    assert answer.status_code == 400
    assert re.search(told, answer.json()["error"])


def test_a_form_that_cannot_be_read_or_is_too_large_is_refused(standing: Service) -> None:
    cut = {"Content-Type": "multipart/form-data; boundary=x"}
    for headers, body in ((cut, b"--x\r\nnothing"), ({"Content-Type": "multipart/form-data"}, b"--x--")):
        answer = standing.session.post(f"{standing.url}/clips", data=body, headers=headers, timeout=60)
        assert answer.status_code == 400 and "Expected" in answer.json()["error"]
    large = {"workflow": FILE, "image": ("p.png", bytes(MOST_BYTES))}
    answer = standing.session.post(f"{standing.url}/clips", files=large, timeout=60)
    assert (answer.status_code, answer.json()) == (413, {"error": "Expected at most 64 MiB."})


def test_who_has_no_token_is_refused_and_what_is_unknown_is_not_found(standing: Service) -> None:
    assert requests.get(f"{standing.url}/health", timeout=60).status_code == 401
    wrong = requests.get(f"{standing.url}/health", headers={"Authorization": "Bearer wrong"}, timeout=60)
    assert wrong.status_code == 401
    health = standing.session.get(f"{standing.url}/health", timeout=60).json()
    assert health == {"waiting": 0, "running": 0, "room": 20}
    assert standing.get("a" * 64).status_code == standing.get("../../etc").status_code == 404
