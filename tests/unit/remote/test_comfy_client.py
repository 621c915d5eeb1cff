"""What the client says of servers that fail, and takes of what they made; the rest has a live one in tests/live."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from i2v_tensorrt.remote.comfyui.client import ComfyClient, PromptRefusedError, ServerError
from i2v_tensorrt.remote.comfyui.messages import ServerFile, made_files


@contextmanager
def server_that_answers(status: int, body: bytes) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_a_missing_server_is_named_and_opens_no_socket() -> None:
    with server_that_answers(200, b"") as url:
        gone = ComfyClient(url)
    with pytest.raises(ServerError, match=f"{url} cannot be reached"):
        gone.object_info()
    with pytest.raises(ServerError, match="socket"):
        gone.run({})


def test_a_failing_server_gives_its_status_and_what_is_no_json_is_shown() -> None:
    with server_that_answers(500, b"Internal Server Error") as url, pytest.raises(ServerError) as caught:
        ComfyClient(url).queue({})
    assert (caught.value.status, caught.value.body) == (500, b"Internal Server Error")
    with server_that_answers(200, b"<html>a router</html>") as url, pytest.raises(ServerError, match="a router"):
        ComfyClient(url).object_info()


def test_numbers_that_json_has_not_reach_the_server_which_judges_them() -> None:
    with server_that_answers(400, b"{}") as url, pytest.raises(PromptRefusedError):
        ComfyClient(url).queue({"1": {"inputs": {"strength": float("nan")}}})


NOT_IN_LIST = {"message": "Value not in list", "details": "sampler: 'x' not in []"}


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ({"error": {"message": "Prompt has no outputs", "details": ""}, "node_errors": {}}, "has no outputs"),
        ({"error": "no prompt", "node_errors": []}, "no prompt"),
        (
            {
                "error": {"message": "Prompt outputs failed validation", "details": "..."},
                "node_errors": {"7": {"class_type": "KSampler", "errors": [NOT_IN_LIST]}},
            },
            "node 7 (KSampler): Value not in list: sampler: 'x' not in []",
        ),
    ],
    ids=["no outputs", "bare text", "node error"],
)
def test_a_refusal_is_one_sentence(answer: dict[str, object], told: str) -> None:
    with (
        server_that_answers(400, json.dumps(answer).encode()) as url,
        pytest.raises(PromptRefusedError) as caught,
    ):
        ComfyClient(url).queue({"7": {"class_type": "KSampler", "inputs": {}}})
    assert str(caught.value).endswith(told)
    assert caught.value.node_errors == (answer["node_errors"] or {})


GOOD = {"filename": "clip_00001_.mp4", "subfolder": "video", "type": "output"}


def made(*entries: Any) -> list[ServerFile]:
    return made_files({"7": {"images": list(entries)}})


@pytest.mark.parametrize("field", ["filename", "subfolder", "type"])
@pytest.mark.parametrize("value", [5, None, True, ["a"], {"a": 1}, "a\0b", "a\nb", "\ud800"], ids=repr)
def test_what_is_no_name_is_no_file(field: str, value: Any) -> None:
    temporary = {"filename": "preview.png", "type": "temp"}
    assert made({**GOOD, field: value}, temporary, GOOD, GOOD) == [ServerFile("clip_00001_.mp4", "video", "output")]
    assert made(temporary) == [ServerFile("preview.png", "", "temp")], "where nothing lies in the output folder"


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("clip.mp4", ".mp4"),
        ("a.tar.gz", ".gz"),
        ("clip", ""),
        ("clip.", ""),
        ("clip." + "x" * 300, ""),
        ("clip./../../x", ""),
        ("clip.m p4", ""),
        ("x.mp4/y", ""),
    ],
)
def test_a_suffix_is_short_and_plain(name: str, suffix: str) -> None:
    (file,) = made({**GOOD, "filename": name})
    assert file.suffix == suffix
    assert Path(f"stem{file.suffix}").name == f"stem{suffix}"
