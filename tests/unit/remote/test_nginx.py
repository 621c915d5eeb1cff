"""The client and the queue behind nginx, as people put it before ComfyUI: TLS, a path, a password, limits."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from i2v_tensorrt.cli.queue_command import main
from i2v_tensorrt.remote.comfyui import client as client_module
from i2v_tensorrt.remote.comfyui.address import parse_address
from i2v_tensorrt.remote.comfyui.client import ComfyClient
from i2v_tensorrt.remote.comfyui.server import free_port

from ...helpers.fake_comfy import GRAPH, FakeComfy, running, write_pictures
from ...helpers.gateway import NAME, Gateway, self_signed, standing
from .test_gateways import no_proxies, port_of

__all__ = ["no_proxies"]

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
STARTS_S = 30
CONFIGURATION = """
{user}daemon off; worker_processes 1; pid nginx.pid; error_log error.log;
events {{}}
http {{
  access_log access.log; client_max_body_size 1m;
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path a; uwsgi_temp_path b; scgi_temp_path c;
  map $http_upgrade $connection_upgrade {{ default upgrade; '' close; }}
  server {{
    listen 127.0.0.1:{port} ssl; ssl_certificate certificate.pem; ssl_certificate_key key.pem;
    auth_basic "ComfyUI"; auth_basic_user_file users;
    location /pods/a/ {{
      proxy_pass http://127.0.0.1:{upstream}/; proxy_http_version 1.1; proxy_read_timeout {idle_s}s;
      proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade;
    }}
  }}
}}
"""


@contextmanager
def nginx(folder: Path, upstream: int, idle_s: int = 60) -> Iterator[int]:
    """nginx before a server, and its port."""
    port = free_port()
    user = "user root; " if os.geteuid() == 0 else ""  # or its worker could not read what lies here
    text = CONFIGURATION.format(port=port, upstream=upstream, idle_s=idle_s, user=user)
    (folder / "nginx.conf").write_text(text)
    (folder / "users").write_text("user:{PLAIN}s3cret\n")
    process = subprocess.Popen([str(NGINX), "-p", str(folder), "-c", "nginx.conf", "-e", "error.log"])
    try:
        deadline = time.monotonic() + STARTS_S
        while not (folder / "nginx.pid").exists() or not (folder / "nginx.pid").read_text():
            assert process.poll() is None and time.monotonic() < deadline, (folder / "error.log").read_text()
            time.sleep(0.02)
        yield port
    finally:
        process.terminate()
        process.wait(STARTS_S)


@pytest.fixture
def fake() -> Iterator[FakeComfy]:
    with running() as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a certificate of nginx's own."""
    self_signed(tmp_path)
    return tmp_path


def test_the_queue_goes_through_it(
    fake: FakeComfy, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    write_pictures(Path("in"), 2)
    Path("in/p01.png").write_bytes(os.urandom(3 << 20))
    Path("graph.json").write_text(json.dumps(GRAPH))
    with nginx(folder, port_of(fake)) as port:
        server = f"https://user:s3cret@127.0.0.1:{port}/pods/a"
        status = main(["graph.json", "--out", "out", "--image", "in", "--server", server, "--ca", "certificate.pem"])
        out, err = capsys.readouterr()
        told = f"{out}{err}"
        assert (status, len(fake.saved), fake.opened) == (1, 1, 1), told
        assert "p01-" in told and "with 3.1 MB is larger than" in told, "nginx takes no more than 1 MB"
        assert "s3cret" not in told
        log = Path("access.log").read_text()
        assert log.count("POST /pods/a/upload/image") == 2 and " 401 " not in log
        wrong = server.replace("s3cret", "an0ther")
        assert main(["graph.json", "--out", "other", "--server", wrong, "--ca", "certificate.pem"]) == 1
        assert "answered 401" in capsys.readouterr().err


def test_a_socket_that_it_closes_opens_again(fake: FakeComfy, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It closes one on which the server is silent."""
    monkeypatch.setattr(client_module, "LOOK_S", 0.2)
    fake.step.clear()

    def release() -> None:
        while fake.opened < 2:
            time.sleep(0.01)
        fake.step.set()

    threading.Thread(target=release, daemon=True).start()
    with nginx(folder, port_of(fake), idle_s=1) as port:
        address = parse_address(f"https://user:s3cret@127.0.0.1:{port}/pods/a", trust=folder / "certificate.pem")
        result = ComfyClient(address).run(GRAPH, timeout_s=60)
    assert result.status == "success" and fake.opened >= 2 and len(fake.posted) == 1


def test_a_proxy_leads_to_it(fake: FakeComfy, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with nginx(folder, port_of(fake)) as port, standing(Gateway(port)) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy.host}")
        address = parse_address(f"https://user:s3cret@{NAME}/pods/a", trust=folder / "certificate.pem")
        assert ComfyClient(address).run(GRAPH).status == "success"
        assert {request.target for request in proxy.seen} == {f"{NAME}:443"}
