"""The client and the queue against servers as people have them: behind proxies that ask, refuse, limit and cut."""

import json
import os
import shutil
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from i2v_tensorrt.cli.queue_command import HEADERS, TOKEN, main
from i2v_tensorrt.common.errors import InputError
from i2v_tensorrt.remote.batch.records import RECORDS
from i2v_tensorrt.remote.comfyui import client as client_module
from i2v_tensorrt.remote.comfyui.address import parse_address
from i2v_tensorrt.remote.comfyui.client import ComfyClient, ServerError

from ...helpers.fake_comfy import GRAPH, STEPS, FakeComfy, running, write_pictures
from ...helpers.gateway import NAME, Gateway, Request, self_signed, standing

SECRET = "s3cret/ü"  # noqa: S105
QUOTED = "s3cret%2F%C3%BC"
BASIC = f"Basic {b64encode(f'user:{SECRET}'.encode()).decode()}"
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine has."""
    for name in (*PROXIES, *map(str.lower, PROXIES), TOKEN, HEADERS):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def fake() -> Iterator[FakeComfy]:
    with running() as server:
        yield server


@pytest.fixture
def gateway(fake: FakeComfy) -> Iterator[Gateway]:
    with standing(Gateway(port_of(fake))) as found:
        yield found


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs the queue over one picture, and gives its status and all that it wrote, files included."""
    monkeypatch.chdir(tmp_path)
    write_pictures(Path("in"), 1)
    Path("graph.json").write_text(json.dumps(GRAPH))

    def run(*arguments: str) -> tuple[int, str]:
        status = main(["graph.json", "--out", "out", "--image", "in", "--patience", "3", *arguments])
        out, err = capsys.readouterr()
        kept = [path.read_text("utf-8", "replace") for path in Path().rglob("*.json")]
        return status, "\n".join([out, err, *kept])

    return run


def port_of(fake: FakeComfy) -> int:
    return int(fake.url.rpartition(":")[2])


def wants(name: str, value: str) -> Callable[[Request], int | None]:
    return lambda request: None if request.headers.get(name) == value else 401


def wants_query(request: Request) -> int | None:
    return None if request.query.get("token") == SECRET else 401


@pytest.mark.parametrize(
    ("address", "options", "rule"),
    [
        ("http://user:{}@{}", (), wants("authorization", BASIC)),
        ("{1}", ("--token", "{}"), wants("authorization", f"Bearer {QUOTED}")),
        ("http://{1}/?token={0}", (), wants_query),
        ("http://{1}/pods/a?x=1&token={0}", (), wants_query),
    ],
    ids=["basic", "bearer", "query", "path and query"],
)
def test_a_server_that_asks_who_is_there(
    fake: FakeComfy, gateway: Gateway, queue: Any, address: str, options: tuple[str, ...], rule: Any
) -> None:
    gateway.prefix = "/pods/a" if "/pods/a" in address else ""
    gateway.refuses = rule
    server = ["--server", address.format(QUOTED, gateway.host), *(word.format(QUOTED) for word in options)]
    status, told = queue(*server)
    assert (status, len(fake.saved)) == (0, 1), told
    assert fake.opened == 1, "the socket was let in too"
    gateway.refuses = lambda request: 401
    shutil.rmtree(Path("out") / RECORDS)
    status, refused = queue(*server)
    assert status == 1 and "answered 401" in refused
    for secret in (SECRET, QUOTED, BASIC.removeprefix("Basic "), json.dumps(SECRET)):
        assert secret not in told + refused + repr(parse_address(server[1]))


def test_a_token_may_stand_in_the_environment(
    fake: FakeComfy, gateway: Gateway, queue: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN, "abc")
    gateway.refuses = wants("authorization", "Bearer abc")
    assert queue("--server", gateway.host)[0] == 0


PAIR = {"cf-access-client-id": "abc.access", "cf-access-client-secret": SECRET.replace("ü", "u")}
"""What Cloudflare Access asks of programs: two headers, neither of which is Authorization."""


@pytest.mark.parametrize("way", ["options", "variable"])
def test_headers_of_the_gateways_own_go_with_every_request(
    fake: FakeComfy, gateway: Gateway, queue: Any, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway.refuses = lambda request: None if PAIR.items() <= request.headers.items() else 403
    lines = [f"{name}: {value}" for name, value in PAIR.items()]
    given = ["--server", gateway.host]
    if way == "variable":
        monkeypatch.setenv(HEADERS, "\n".join(lines))
    else:
        given += [word for line in lines for word in ("--header", line)]
    status, told = queue(*given)
    assert (status, len(fake.saved)) == (0, 1), told
    assert fake.opened == 1, "the socket was let in too"
    gateway.refuses = lambda request: 403
    shutil.rmtree("out/.jobs")
    status, refused = queue(*given)
    assert status == 1 and "answered 403" in refused
    for value in PAIR.values():
        assert value not in told + refused + repr(parse_address(gateway.host, headers=lines))


@pytest.mark.parametrize("line", ["no colon", ": x", "Na me: x", "X-A: a\r\nX-B: b", "X-Ü: a", "X-A: ü中", "Host: a"])
def test_what_is_no_header_is_refused_without_a_word_of_it(queue: Any, line: str) -> None:
    status, told = queue("--header", line)
    assert status == 2 and "Expected a header such as" in told and line not in told


def test_headers_of_the_gateways_own_go_to_no_other_host(fake: FakeComfy, gateway: Gateway) -> None:
    """Who is not let in is sent to a page of another host, where people would log in."""
    with standing(Gateway(port_of(fake))) as other:
        gateway.refuses = lambda request: 302
        gateway.leads_to = f"http://localhost:{other.port}/queue"
        ComfyClient(parse_address(gateway.host, headers=["X-Secret: abcdef"])).queued()
        assert "x-secret" in gateway.seen[0].headers
        assert other.seen and "x-secret" not in other.seen[0].headers
        gateway.leads_to = "/queue?again"
        gateway.refuses = lambda request: None if "again" in request.query or "again" in request.target else 302
        ComfyClient(parse_address(gateway.host, headers=["X-Secret: abcdef"])).queued()
        assert "x-secret" in gateway.seen[-1].headers, "the same host"


def test_a_netrc_takes_no_tokens_place(
    fake: FakeComfy, gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("default login somebody password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    gateway.refuses = wants("authorization", "Bearer abc")
    assert ComfyClient(parse_address(gateway.host, "abc")).queued() == (set(), set())
    gateway.refuses = lambda request: 403 if "authorization" in request.headers else None
    assert ComfyClient(gateway.host).queued() == (set(), set())


@pytest.mark.parametrize(
    "address", ["http://user:{}@nowhere.invalid:9", "http://nowhere.invalid:9/?token={}", "http://127.0.0.1:9/?a={}"]
)
def test_no_secret_is_in_the_sentence_on_a_server_that_is_not_there(queue: Any, address: str) -> None:
    status, told = queue("--server", address.format(QUOTED))
    assert status == 1 and "cannot be reached" in told
    assert SECRET not in told and QUOTED not in told and "user" not in told


@pytest.mark.parametrize(
    "address", ["ftp://user:{}@a", "http://user:{}@:9", "http://user:{}@a:port", "http://?token={}", "http://"]
)
def test_what_is_no_address_is_refused_without_a_word_of_it(queue: Any, address: str) -> None:
    status, told = queue("--server", address.format(QUOTED))
    assert status == 2 and QUOTED not in told and "A server's address is such as" in told


def test_a_name_and_a_token_are_one_too_many() -> None:
    with pytest.raises(InputError, match="expected those or a token, found both") as caught:
        parse_address("http://user:abc@host", "token")
    assert "abc" not in str(caught.value)


def test_a_certificate_of_its_own(fake: FakeComfy, queue: Any, tmp_path: Path) -> None:
    context, certificate = self_signed(tmp_path)
    with standing(Gateway(port_of(fake)), context) as gateway:
        server = ("--server", f"https://{gateway.host}")
        status, told = queue(*server)
        assert status == 1 and "certificate is not trusted" in told and "--insecure" in told
        assert queue(*server, "--ca", str(certificate))[0] == 0
        shutil.rmtree(Path("out") / RECORDS)
        assert queue(*server, "--insecure")[0] == 0
        assert fake.opened == 2, "the sockets trust it too"
    status, told = queue(*server, "--ca", "missing.pem")
    assert status == 2 and "Expected certificates in missing.pem" in told


def test_names_of_pythons_libraries_may_be_refused(fake: FakeComfy, gateway: Gateway, queue: Any) -> None:
    def refuses(request: Request) -> int | None:
        agent = request.headers.get("user-agent", "").lower()
        return 403 if not agent or agent.startswith("python") or "websockets" in agent else None

    gateway.refuses = refuses
    assert queue("--server", gateway.host)[0] == 0
    assert fake.opened == 1


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy"])
def test_a_proxy_is_the_only_way_out(
    fake: FakeComfy, gateway: Gateway, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The host is known to the proxy alone."""
    monkeypatch.setenv(name, f"http://{gateway.host}")
    result = ComfyClient(f"http://{NAME}:8188").run(GRAPH)
    assert result.status == "success" and {event.kind for event in result.events} >= {"progress"}
    assert any(request.method == "CONNECT" for request in gateway.seen), "for the socket"
    gateway.seen.clear()
    monkeypatch.setenv("NO_PROXY", NAME)
    with pytest.raises(ServerError, match=f"http://{NAME}:8188"):
        ComfyClient(f"http://{NAME}:8188").run(GRAPH)
    assert not gateway.seen


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
def test_a_proxy_is_the_only_way_to_an_https_server(
    fake: FakeComfy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    """It hands bytes on that it cannot read, for requests and the socket alike."""
    context, certificate = self_signed(tmp_path)
    with standing(Gateway(port_of(fake)), context) as secure, standing(Gateway(secure.port)) as proxy:
        monkeypatch.setenv(name, f"http://{proxy.host}")
        address = parse_address(f"https://{NAME}:8443", "a token", certificate)
        result = ComfyClient(address).run(GRAPH)
        assert result.status == "success" and {event.kind for event in result.events} >= {"progress"}
        assert {(request.method, request.target) for request in proxy.seen} == {("CONNECT", f"{NAME}:8443")}
        assert all(request.headers["authorization"] == "Bearer a token" for request in secure.seen)
        assert not any("authorization" in request.headers for request in proxy.seen), "the token is the server's"
        proxy.seen.clear()
        for pattern in (NAME, ".invalid", "*"):
            monkeypatch.setenv("NO_PROXY", pattern)
            with pytest.raises(ServerError, match=f"https://{NAME}:8443"):
                ComfyClient(address).run(GRAPH)
        assert not proxy.seen


def test_no_proxy_leads_to_this_machine(fake: FakeComfy, gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://{gateway.host}")
    assert ComfyClient(fake.url).run(GRAPH).status == "success"
    assert not gateway.seen


def test_a_socket_that_is_cut_while_it_is_idle_ends_no_run(
    fake: FakeComfy, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "LOOK_S", 0.2)
    gateway.idle_s = 0.3
    fake.step.clear()
    seen: list[str] = []

    def note(event: Any) -> None:
        seen.append(event.kind)

    def release() -> None:
        while fake.opened < 3:
            time.sleep(0.01)
        fake.step.set()

    threading.Thread(target=release, daemon=True).start()
    result = ComfyClient(gateway.host).run(GRAPH, note, timeout_s=30)
    assert result.status == "success" and fake.opened >= 3
    assert fake.life is not None and not fake.life.interrupted, "nothing was cancelled"
    assert len(fake.posted) == 1


def test_a_run_that_ended_while_nobody_read_is_told_to_its_last_message(
    fake: FakeComfy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "LOOK_S", 0.0)

    def wait_for_the_end(event: Any) -> None:
        while event.prompt_id not in (fake.life.history if fake.life else {}):
            time.sleep(0.01)

    result = ComfyClient(fake.url).run(GRAPH, wait_for_the_end, timeout_s=30)
    assert result.events[-1].is_end
    assert sum(event.kind == "progress" for event in result.events) == len(GRAPH) * STEPS


def test_a_run_whose_end_was_missed_is_found(
    fake: FakeComfy, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "LOOK_S", 0.2)
    fake.copies = 0  # no message comes through
    assert ComfyClient(gateway.host).run(GRAPH, timeout_s=30).status == "success"


LARGE = 3 << 20


@pytest.mark.parametrize("way", ["the server says so", "413", "it breaks off"])
def test_a_picture_over_the_limit_is_told_and_sent_once_at_most(
    fake: FakeComfy, gateway: Gateway, queue: Any, way: str
) -> None:
    def uploads(request: Request) -> bool:
        return request.target.startswith("/upload")

    if way == "the server says so":
        fake.max_upload_size = 2 << 20
    elif way == "413":
        gateway.refuses = lambda request: 413 if uploads(request) else None
    else:
        gateway.resets = uploads
    Path("in/p00.png").write_bytes(os.urandom(LARGE))
    status, told = queue("--server", gateway.host)
    assert status == 1 and "p00-" in told and "with 3.1 MB is larger than" in told and "--max-upload-size" in told
    assert sum(map(uploads, gateway.seen)) == (way != "the server says so")
    assert "(2.1 MB)" in told or way != "the server says so"


def test_an_upload_that_breaks_off_with_the_server_is_tried_again(
    fake: FakeComfy, gateway: Gateway, queue: Any
) -> None:
    fake.faults["POST /upload"].append("drop")
    assert queue("--server", gateway.host)[0] == 0


def test_a_request_that_is_led_elsewhere_is_not_sent_as_another(fake: FakeComfy, gateway: Gateway) -> None:
    gateway.refuses = lambda request: 301 if request.method == "POST" else None
    with pytest.raises(ServerError, match="/prompt answered 301"):
        ComfyClient(gateway.host).queue(GRAPH)


@pytest.mark.skipif(os.name != "posix", reason="file names are bytes")
@pytest.mark.parametrize("name", [b"\xd6\xd0.png", 'ü 中\n"x".png'.encode(), b"a\xff\xfe.png"])
def test_a_file_name_of_any_bytes(fake: FakeComfy, queue: Any, name: bytes) -> None:
    Path("in/p00.png").rename(Path("in") / os.fsdecode(name))
    for arguments in ((), ("--json",)):
        status, told = queue("--server", fake.url, *arguments)
        assert status == 0, told
    assert len(fake.uploads) == 1 and fake.uploads[0].isprintable()
    assert len(list(Path("out").glob("*.mp4"))) == 1


def test_outputs_that_went_away_are_made_again(fake: FakeComfy, queue: Any) -> None:
    """A server answers from its cache with names of files that are gone, until it is asked to forget."""
    fake.keeps_outputs = True
    assert queue("--server", fake.url)[0] == 0
    fake.files.clear()
    for path in Path("out").glob("*.mp4"):
        path.unlink()
    status, told = queue("--server", fake.url)
    assert status == 0 and "gone on the server" in told
    assert len(list(Path("out").glob("*.mp4"))) == 1 and len(fake.files) == 1
    fake.files.clear()
    fake.forgets = False
    next(Path("out").glob("*.mp4")).unlink()
    status, told = queue("--server", fake.url)
    assert status == 1 and "answered 404" in told


def test_what_goes_beside_the_graph_is_passed_on_and_kept_nowhere(fake: FakeComfy, queue: Any) -> None:
    extra = {"extra_pnginfo": {"workflow": {"nodes": []}}, "api_key_comfy_org": "key-of-mine"}
    Path("graph.json").write_text(json.dumps({"prompt": GRAPH, "extra_data": extra}))
    status, _ = queue("--server", fake.url)
    assert status == 0 and fake.extra_data == [extra]
    kept = [path for path in Path("out").rglob("*") if path.is_file()]
    assert "key-of-mine" not in "".join(path.read_text("utf-8", "replace") for path in kept)
    ComfyClient(fake.url).run(GRAPH, extra_data=extra)
    assert fake.extra_data[-1] == extra
