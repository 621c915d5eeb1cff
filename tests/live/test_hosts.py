"""ComfyUI as people start it: flags, caches, languages, odd paths, folders that may not be written, two copies."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch

from i2v_tensorrt.common.pack_paths import PICTURE as EXAMPLE
from i2v_tensorrt.remote.comfyui.client import ComfyClient
from i2v_tensorrt.remote.comfyui.server import ComfyHost, link_pack, start_server
from i2v_tensorrt.tests.live.answers import failure, movie, run, text
from i2v_tensorrt.tests.live.conftest import ARGUMENTS, PACK, filled_base
from i2v_tensorrt.tests.live.graphs import LOSSLESS, Prompt, builder, changed, clip, gradient, only, png
from i2v_tensorrt.tests.live.ids import BUILDER, CHECKPOINT, CONDITIONING, LOADER, SAMPLER, SAVE

CPU = () if torch.cuda.is_available() else ("--cpu",)
FLAGS = [
    ("--cache-ram",),
    ("--cache-ram", "1000"),
    ("--cache-classic",),
    ("--force-fp16",),
    ("--cpu-vae",),
    ("--disable-smart-memory",),
    ("--fp16-intermediates",),
    ("--multi-user",),
]
ON_A_GPU = [("--lowvram",), ("--novram",), ("--highvram",), ("--gpu-only",)]
"""ComfyUI refuses them beside --cpu, and starts without --cpu on a GPU alone; inside_memory.py pretends one."""

Start = Callable[..., AbstractContextManager[ComfyClient]]


@pytest.fixture
def base(tiny_folder: Path, tmp_path: Path) -> Path:
    """A folder whose name has spaces, umlauts and Chinese in it."""
    return filled_base(tmp_path / "Größe, 尺寸 v1", {CHECKPOINT: tiny_folder})


@pytest.fixture
def start(host: ComfyHost, base: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Starts a server in that folder, in Chinese, with those flags."""
    monkeypatch.setenv("LANG", "zh_CN.UTF-8")

    @contextmanager
    def started(flags: Sequence[str]) -> Iterator[ComfyClient]:
        with start_server(host, base, [*ARGUMENTS, "--preview-method", "latent2rgb", *CPU, *flags]) as server:
            yield ComfyClient(server.url)

    return started


def make_the_same_clip_twice(client: ComfyClient) -> None:
    """With another between, and once more by its stored latents."""
    prompt = clip(client.upload_image(png(gradient()), "bild größe 图.png"), LOSSLESS)
    first = movie(client, prompt)
    run(client, changed(prompt, {SAMPLER: {"seed": 1}}))
    assert torch.equal(first, movie(client, changed(prompt, {SAVE: {"filename_prefix": "video/again"}})))
    kept = changed(prompt, {SAMPLER: {"reuse_result": True}})
    assert torch.equal(first, movie(client, kept)) and torch.equal(first, movie(client, kept))


def build(backend: str) -> Prompt:
    """An engine of the picture's encoder."""
    return only({LOADER: clip("")[LOADER], BUILDER: builder(backend=backend)}, LOADER, BUILDER)


def test_two_copies_make_a_clip_and_are_told_once(start: Start, base: Path) -> None:
    """As by the registry and by hand, and with a host that keeps nothing between two prompts."""
    link_pack(PACK, base, "i2v-tensorrt")
    with start(["--cache-none"]) as client:
        make_the_same_clip_twice(client)
        built = client.run(build("onnxruntime"))
        assert built.status == "success" or "BackendUnavailableError" in str(built.error), built.error
    log = (base / "comfyui.log").read_text("utf-8")
    warnings = [line for line in log.splitlines() if "I2V TensorRT is installed twice" in line]
    assert len(warnings) == 1, log
    assert "I2V-TensorRT" in warnings[0] and "i2v-tensorrt" in warnings[0]


def test_where_nothing_may_be_written_clips_are_made_and_builds_say_why(start: Start, base: Path) -> None:
    """A file in a folder's place refuses everybody, root too; the user's own picture is not written over."""
    for path in (base / "models" / "i2v_engines", base / "user" / "__i2v_tensorrt", base / "input" / EXAMPLE.name):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"the user's own")
    with start(["--cache-lru", "1"]) as client:
        make_the_same_clip_twice(client)
        told = failure(client, build("onnxruntime"))
        assert "StorageError" in told or "BackendUnavailableError" in told, told
    assert (base / "input" / EXAMPLE.name).read_bytes() == b"the user's own"


@pytest.mark.torture
@pytest.mark.parametrize("flags", FLAGS, ids=" ".join)
def test_any_flags_make_the_same_clip(host: ComfyHost, start: Start, flags: tuple[str, ...]) -> None:
    if f'"{flags[0]}"' not in (host.directory / "comfy" / "cli_args.py").read_text("utf-8"):
        pytest.skip(f"this ComfyUI has no {flags[0]}")
    with start(flags) as client:
        make_the_same_clip_twice(client)


@pytest.mark.skipif(bool(CPU), reason="ComfyUI takes this flag in place of --cpu, and there is no GPU")
@pytest.mark.parametrize("flags", ON_A_GPU, ids=" ".join)
def test_flags_on_memory_make_the_same_clip(start: Start, flags: tuple[str, ...]) -> None:
    with start(flags) as client:
        make_the_same_clip_twice(client)


NAMES = ("LOGNAME", "USER", "LNAME", "USERNAME")
"""Where Python finds a user's name before it looks for the account."""
NAMELESS = ("unshare", "--user", "--map-user=4242", "--map-group=4242")


@pytest.mark.torture
@pytest.mark.skipif(shutil.which(NAMELESS[0]) is None, reason="util-linux is not installed")
def test_an_engine_is_compiled_for_a_user_without_an_account(
    host: ComfyHost, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container that is run under somebody's number."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {" ".join(NAMELESS)} "{host.python}" "$@"\n')
    python.chmod(0o755)
    asked = subprocess.run([str(python), "-c", "import getpass; getpass.getuser()"], capture_output=True, text=True)
    if "uid not found" not in asked.stderr:
        pytest.skip(f"this system lets nobody be another user: {asked.stderr[-100:]}")
    with start_server(ComfyHost(host.directory, python), base, [*ARGUMENTS, *CPU]) as server:
        assert "built in" in text(run(ComfyClient(server.url), build("inductor")), BUILDER)


@pytest.mark.torture
def test_an_engine_is_compiled_in_another_language_and_an_odd_folder(start: Start) -> None:
    with start([]) as client:
        assert "built in" in text(run(client, build("inductor")), BUILDER)


@pytest.mark.torture
def test_thirty_prompts_without_a_cache_grow_nothing(start: Start, base: Path) -> None:
    """Each loads the model anew, and what the first ten hold is all that is held."""
    import psutil

    with start(["--cache-none"]) as client:
        picture = client.upload_image(png(gradient()), "picture.png")
        (process,) = [each for each in psutil.process_iter(["cmdline"]) if str(base) in (each.info["cmdline"] or [])]
        held = []
        for number in range(30):
            result = run(client, clip(picture, {CONDITIONING: {"prompt": f"{number}"}, SAMPLER: {"seed": number}}))
            # An older ComfyUI drops what the sampler answered once nobody needs it.
            assert any("denoised in" in line.text for line in result.texts if line.node_id == SAMPLER)
            held.append(process.memory_info().rss)
        assert max(held[-10:]) < 1.1 * max(held[:10])
