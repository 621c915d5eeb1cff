"""A live ComfyUI attacked through its API, with every file that it touches watched by an audit hook."""

from __future__ import annotations

import ctypes
import json
import os
import random
import re
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from i2v_tensorrt.remote.comfyui.client import ComfyClient, PromptRefusedError
from i2v_tensorrt.remote.comfyui.messages import outcome
from i2v_tensorrt.remote.comfyui.server import ComfyHost, ComfyServer, start_server
from i2v_tensorrt.tests.helpers.counts import Evidence, counted
from i2v_tensorrt.tests.live import hostile
from i2v_tensorrt.tests.live.answers import core_saves_in, failure, file_names, json_of, run, text
from i2v_tensorrt.tests.live.conftest import PACK, filled_base
from i2v_tensorrt.tests.live.device import device_of
from i2v_tensorrt.tests.live.graphs import Prompt, changed, clip, encoding, gradient, node, png, save
from i2v_tensorrt.tests.live.hostile import LEADS_OUT, generated_graph, posted
from i2v_tensorrt.tests.live.ids import CHECKPOINT, CONDITIONING, DECODE, LOADER, SAMPLER, SAVE

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="paths are watched on Linux")

TEMPORARY = "tmp"
"""Where Python's temporary files lie: aiohttp keeps uploads there, and compilers what they make."""
FREE_BYTES = 400 << 20
"""What the server believes to be free."""
BATCH = 40
STUCK_S = 240
OURS = re.compile(
    r'node \S+ \(I2VTRT_\w+\) failed with i2v_tensorrt\.\w+Error: [^\n]*([."]|To install it: pip install [\w -]+)',
    re.DOTALL,
)
"""A sentence ends with a full stop, a quotation or a command to copy."""
CORES = re.compile(r"node \S+ \((?!I2VTRT_)\w+\) failed with ", re.DOTALL)


@dataclass(frozen=True)
class Attacked:
    """A server, what lies beside its folders, and what it should not have done."""

    server: ComfyServer
    client: ComfyClient
    outside: Path
    log: Path
    picture: str
    follows_links: bool
    """Whether this ComfyUI itself saves where a link leads out of its output folder, as older ones do."""

    @property
    def output(self) -> Path:
        return self.server.base_directory / "output"

    def offences(self) -> list[str]:
        """Lines of the audit hook since the last call."""
        lines = self.log.read_text().splitlines()
        self.log.write_text("")
        return lines

    def held_bytes(self, *, most: bool = False) -> int:
        """The memory that the server holds, or the most that it has held since `forget_peak`."""
        status = Path(f"/proc/{self.server.process.pid}/status").read_text()
        return int(re.findall(rf"{'VmHWM' if most else 'VmRSS'}:\s+(\d+) kB", status)[0]) << 10

    def forget_peak(self) -> None:
        """Lets the kernel count the most anew."""
        Path(f"/proc/{self.server.process.pid}/clear_refs").write_text("5")


@pytest.fixture(scope="module")
def attacked(
    host: ComfyHost, tiny_folder: Path, server_arguments: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Attacked]:
    top = tmp_path_factory.mktemp("attacked")
    base, outside, log = top / "base", top / "outside", top / "offences.log"
    outside.mkdir()
    (outside / "secret.txt").write_text("secret")
    (outside / "model_index.json").write_text('{"_class_name": "I2VGenXLPipeline"}')
    filled_base(base, {CHECKPOINT: tiny_folder}, "audit_probe.py")
    folders = ("output", "temp", "user", "input", "models/i2v_engines", TEMPORARY)
    for name in folders:
        (base / name).mkdir(parents=True, exist_ok=True)
    (base / "output" / LEADS_OUT).symlink_to(outside, target_is_directory=True)
    rules = {
        "log": str(log),
        "writable": [str(base / name) for name in folders],
        "watched": [str(outside)],
        "free_bytes": FREE_BYTES,
    }
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("I2V_AUDIT", json.dumps(rules))
        environment.setenv("PYTHONDONTWRITEBYTECODE", "1")
        environment.setenv("TMPDIR", str(base / TEMPORARY))
        with start_server(host, base, server_arguments) as server:
            client = ComfyClient(server.url)
            picture = client.upload_image(png(gradient()), "gradient.png")
            follows = core_saves_in(client, picture, f"{LEADS_OUT}/core")
            if follows:
                shutil.rmtree(outside / "core")
                (base / "output" / LEADS_OUT).unlink()
            log.write_text("")  # without what ComfyUI's own node has just done
            yield Attacked(server, client, outside, log, picture, follows)


@contextmanager
def unharmed(attacked: Attacked) -> Iterator[None]:
    """Nothing that was outside is touched in the block, and a good workflow runs after it."""
    attacked.offences()
    before = {path: path.read_bytes() for path in attacked.outside.iterdir()}
    yield
    run(attacked.client, clip(attacked.picture))
    assert attacked.offences() == []
    assert {path: path.read_bytes() for path in attacked.outside.iterdir()} == before


def faults_of(answer: Mapping[str, Any]) -> list[str]:
    """What in a refusal is not a sentence of the pack or of ComfyUI."""
    wrong = []
    for error in (error for entry in answer.values() for error in entry["errors"]):
        raised = str(error["extra_info"].get("traceback", ""))
        if "I2V-TensorRT" in raised or str(PACK) in raised:
            wrong.append(f"{error['details']}: {raised}")
        if error["type"] == "custom_validation_failed" and not is_a_sentence(error["details"]):
            wrong.append(error["details"])
    return wrong


def is_a_sentence(text: str) -> bool:
    """One line that can be shown anywhere; it may end with a command line."""
    return text.isprintable() and len(text) < 1000 and text[-1] in '."'


def run_all(client: ComfyClient, prompts: Sequence[Prompt], extra: Mapping[str, Any] | None = None) -> Counter[str]:
    """Posts prompts and waits for their ends; how many were refused, failed in a sentence, and ran.

    Any other end is an error, told with the prompt.
    """
    waiting, ends = {}, Counter[str]()
    for prompt in prompts:
        try:
            waiting[client.queue(prompt)] = prompt
        except PromptRefusedError as refused:
            assert faults_of(refused.node_errors) == [], json.dumps(prompt)
            ends["refused"] += 1
    wait_until_idle(client)
    for prompt_id, prompt in waiting.items():
        status, error = outcome(client.history(prompt_id))
        if status == "success":
            ends["run"] += 1
        elif OURS.fullmatch(error or ""):
            ends["failed in a sentence"] += 1
        else:
            assert CORES.match(error or ""), f"{error}\n{json.dumps(prompt)}"
            ends["failed in a core node"] += 1
    return ends


def wait_until_idle(client: ComfyClient) -> None:
    """Returns once the queue is empty; fails where nothing leaves it for minutes, as when its worker is gone."""
    before, since = client.queued(), time.monotonic()
    while any(now := client.queued()):
        if now != before:
            before, since = now, time.monotonic()
        assert time.monotonic() - since < STUCK_S, "the queue does not move"
        time.sleep(0.01)


def told(ends: Counter[str]) -> str:
    return ", ".join(f"{number} {end}" for end, number in sorted(ends.items()))


def test_the_hook_sees_what_it_should(attacked: Attacked) -> None:
    for path, mode in ((attacked.outside / "secret.txt", "r"), (attacked.server.base_directory / "new", "w")):
        attacked.client.run({"1": node("ProbeOffence", path=str(path), mode=mode)})
        (line,) = attacked.offences()
        assert json.loads(line)["what"] == str(path)
        (attacked.server.base_directory / "new").unlink(missing_ok=True)


def test_what_is_held_gives_way_before_memory_fails(attacked: Attacked) -> None:
    """The server believes that its memory is nearly full: caches and encoders go, and each node says so."""
    first = clip(attacked.picture, {CONDITIONING: {"prompt": "a full house"}})
    result = run(attacked.client, first)
    encoded, denoised, decoded = (text(result, name) for name in (CONDITIONING, SAMPLER, DECODE))
    for gone in ("image_encoder", "vae_encoder", "text_encoder"):
        assert f"Memory is over 90% full: let go of {gone}." in encoded
    # What caches keep lies in the memory of the host, which is another one than a GPU's.
    kept = "what the caches keep in memory, " if device_of(attacked.server.url).kind == "cpu" else ""
    assert f"Memory is over 90% full: let go of {kept}conditioner." in denoised
    assert "1 of 4 frames at once, for the memory that is free" in decoded
    again = run(attacked.client, changed(first, {SAMPLER: {"seed": 9}}))
    assert "Memory is over" not in text(again, SAMPLER), "nothing is held any more"


def test_a_clip_that_does_not_fit_is_refused_or_shrinks(attacked: Attacked) -> None:
    large = {"width": 1024, "height": 512, "num_frames": 8, "prompt": "too large"}
    error = failure(attacked.client, clip(attacked.picture, {CONDITIONING: large}))
    assert "BudgetError: " in error and " would fit." in error
    result = run(attacked.client, clip(attacked.picture, {CONDITIONING: {**large, "if_too_large": "shrink"}}))
    pattern = r"Made as (\d+)x(\d+) with (\d+) frames?, for 1024x512 with 8 frames does not fit the memory."
    found = re.search(pattern, text(result, CONDITIONING))
    assert found is not None
    width, height, frames = map(int, found.groups())
    assert width * height * frames < 1024 * 512 * 8
    assert abs(width / height - 2) < 0.5


@counted(40, 5000)
def test_names_lead_nowhere_else(attacked: Attacked, count: int, evidence: Evidence) -> None:
    """In every input that becomes a path, as a widget and over a link."""
    draw, ends = random.Random(count), Counter[str]()
    with unharmed(attacked):
        for start in range(0, count, BATCH):
            names = [hostile.hostile_name(draw, attacked.outside) for _ in range(min(BATCH, count - start))]
            ends += run_all(attacked.client, [named(attacked.picture, name, draw) for name in names])
    assert sum(ends.values()) == count
    assert ends["refused"] > count / 4
    evidence("hostile strings in what becomes a path", count, f"{told(ends)}; nothing outside read or written")


def named(picture: str, name: str, draw: random.Random) -> Prompt:
    """A quick prompt with the name in one of the inputs that could lead to a file."""
    kind = draw.random()
    if kind < 0.5:
        return save(picture, filename_prefix=name)
    if kind < 0.8:
        prompt = save(picture, filename_prefix=["20", 0])
        return {**prompt, "20": node("PrimitiveString", value=name)}
    return encoding(picture, {LOADER: {draw.choice(["checkpoint", "checkpoint", "precision"]): name}})


@counted(10, 50)
def test_a_folder_that_becomes_a_link_leads_nowhere_else(attacked: Attacked, count: int, evidence: Evidence) -> None:
    """Checked while it was a folder, run when it is a link; and swapped to and fro while files are written."""
    if attacked.follows_links:
        pytest.skip("this ComfyUI follows links out of its output folder, and the pack does as it does")
    folder, link = (attacked.output / name for name in ("swapped", "swapped-link"))
    folder.mkdir()
    link.symlink_to(attacked.outside, target_is_directory=True)
    stop, swaps = threading.Event(), Counter[str]()

    def swap() -> None:
        while not stop.is_set():
            exchange(folder, link)
            swaps["done"] += 1
            time.sleep(0.001)  # without a pause the disk's journal has no time for anybody else's files

    ends, swapper = Counter[str](), threading.Thread(target=swap)
    with unharmed(attacked):
        swapper.start()
        try:
            for number in range(count):
                prompt = save(attacked.picture, filename_prefix=f"swapped/clip{number % 7}", crf=number % 50)
                ends += run_all(attacked.client, [prompt])
        finally:
            stop.set()
            swapper.join()
    assert file_names(attacked.outside) == {"secret.txt", "model_index.json"}
    assert swaps["done"] > count
    for left in (folder, link):  # whichever name has which by now
        left.unlink() if left.is_symlink() else shutil.rmtree(left)
    evidence("folders swapped for links while saving", count, f"{told(ends)}; {swaps['done']} swaps, nothing outside")


def exchange(one: Path, other: Path) -> None:
    """Each name leads to what the other one led to, at once: the server never finds either missing (renameat2)."""
    library, here, flag = ctypes.CDLL(None, use_errno=True), -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if library.renameat2(here, os.fsencode(one), here, os.fsencode(other), flag):
        raise OSError(ctypes.get_errno(), "could not be exchanged", str(one))


@counted(40, 20_000)
def test_any_graph_ends_in_a_result_or_a_sentence(attacked: Attacked, count: int, evidence: Evidence) -> None:
    """Nor is more allocated than is free. ComfyUI's history, which keeps every prompt, is emptied on the way."""
    draw, ends, most = random.Random(count), Counter[str](), 0
    with unharmed(attacked):
        first = attacked.held_bytes()
        for start in range(0, count, BATCH):
            graphs = [generated_graph(attacked.picture, draw) for _ in range(min(BATCH, count - start))]
            attacked.forget_peak()
            before = attacked.held_bytes()
            ends += run_all(attacked.client, graphs)
            most = max(most, attacked.held_bytes(most=True) - before)
            for path in attacked.output.rglob("*.*"):  # which would fill the disk
                if path.is_file() and not path.is_symlink():
                    path.unlink()
            assert posted(attacked.server.url, b'{"clear": true}', "history") == 200  # which would fill the memory
        growth = attacked.held_bytes() - first
    assert sum(ends.values()) == count
    assert most < FREE_BYTES
    assert growth < FREE_BYTES
    held = f"the server takes {most >> 20} MiB at most and holds {growth >> 20} MiB more at the end"
    evidence("generated graphs", count, f"{told(ends)}; {held}")


def test_only_what_ends_the_host_is_taken_out_of_a_graph() -> None:
    """Links that lead nowhere stay where somebody checks them."""
    whole = clip("picture.png")
    nowhere = [["99", 0], [CONDITIONING, 0.5], [CONDITIONING, 99]]
    for link in nowhere:
        prompt = changed(whole, {SAMPLER: {"seed": link, "strange": link}, SAVE: {"strange": [CONDITIONING, 0]}})
        hostile.spare_the_host(prompt, whole)
        assert prompt[SAMPLER]["inputs"] == {**whole[SAMPLER]["inputs"], "seed": link}
        assert prompt[SAVE]["inputs"]["strange"] == [CONDITIONING, 0]


@counted(30, 1000)
def test_malformed_requests_leave_the_server_up(attacked: Attacked, count: int, evidence: Evidence) -> None:
    draw, statuses = random.Random(count), Counter[int]()
    with unharmed(attacked):
        for _ in range(count):
            statuses[posted(attacked.server.url, hostile.malformed_request(attacked.picture, draw))] += 1
        wait_until_idle(attacked.client)
    assert set(statuses) <= {200, 400, 500}
    answers = ", ".join(f"{number} x {status}" for status, number in sorted(statuses.items()))
    evidence("malformed requests", count, f"{answers}; server up, a good workflow passes")


PICTURES: dict[str, bytes] = {
    "text.png": b"not a picture",
    "empty.png": b"",
    "cut.png": png(gradient())[:60],
    "other.jpg": png(gradient()),
    "page.svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "bomb.png": png(Image.new("1", (20_000, 20_000))),
    "pickle.png": b"\x80\x04cposix\nsystem\n(X\x02\x00\x00\x00idtR.",
    "link.gif": b"GIF89a" + b"\xff" * 200,
}


def test_pictures_that_are_not_what_they_say(attacked: Attacked) -> None:
    """The core opens them; whatever it makes of them, nothing else comes of it."""
    with unharmed(attacked):
        for name, content in PICTURES.items():
            uploaded = attacked.client.upload_image(content, name)
            try:
                result = attacked.client.run(clip(uploaded))
            except PromptRefusedError:
                continue
            assert result.status == "success" or CORES.match(result.error or ""), (name, result.error)


@counted(10, 300)
def test_what_the_page_sends_along_is_any_json(attacked: Attacked, count: int, evidence: Evidence) -> None:
    """The workflow that is embedded in files is whatever the request says."""
    draw, ends = random.Random(count), Counter[str]()
    with unharmed(attacked):
        for number in range(count):
            key = draw.choice(["mp4-h264", "webp", "gif"])
            prompt = save(attacked.picture, format=key, filename_prefix=f"along/{number}")
            extra = {"extra_pnginfo": hostile.any_json(draw) if number % 2 else {"workflow": hostile.any_json(draw)}}
            body = json.dumps({"prompt": prompt, "extra_data": extra}).encode()
            assert posted(attacked.server.url, body) == 200
        wait_until_idle(attacked.client)
    for status, error in map(outcome, json_of(f"{attacked.server.url}/history?max_items={count}").values()):
        ends["run" if status == "success" else "failed in a sentence"] += 1
        assert status == "success" or OURS.fullmatch(error or ""), error
    evidence("any JSON in the place of the workflow", count, told(ends))
