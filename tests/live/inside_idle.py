"""ComfyUI's queue and its users' settings, as builds while nothing runs ask for them."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import comfy.model_management as memory
import execution
import folder_paths
from server import PromptServer

from i2v_tensorrt.nodes.host import idle
from i2v_tensorrt.nodes.host.idle import SETTING, SETTINGS, VARIABLE, _Queue, is_switched_on
from i2v_tensorrt.nodes.host.memory import free_models
from i2v_tensorrt.tests.live.card import GIB, Card, CardModel, pretended


@contextmanager
def served(folder: Path) -> Iterator[Any]:
    """A server with an empty queue, and its users in the folder."""
    before = folder_paths.get_user_directory()
    queue = execution.PromptQueue(SimpleNamespace(queue_updated=lambda: None))
    server = SimpleNamespace(prompt_queue=queue)
    folder_paths.set_user_directory(str(folder))
    try:
        with patch.object(PromptServer, "instance", server, create=True):
            yield queue
    finally:
        folder_paths.set_user_directory(before)


def sets(folder: Path, user: str, content: str) -> Path:
    """Writes a user's settings."""
    path = folder / user / SETTINGS
    path.parent.mkdir(exist_ok=True)
    path.write_text(content, "utf-8")
    return path


def case_it_is_on_unless_some_user_has_switched_it_off(folder: Path) -> None:
    with served(folder):
        assert is_switched_on(), "nobody has set anything"
        sets(folder, "default", json.dumps({"Comfy.Locale": "zh"}))
        sets(folder, "ada", json.dumps({SETTING: True}))
        assert is_switched_on()
        sets(folder, "bob", json.dumps({SETTING: False}))
        assert not is_switched_on()
        sets(folder, "bob", json.dumps({SETTING: True}))
        assert is_switched_on()


def case_damaged_settings_switch_nothing_off(folder: Path) -> None:
    with served(folder):
        for content in ("", "{", "[]", "null", '"text"', "3", '{"a": ?}'):
            sets(folder, "default", content)
            assert is_switched_on(), content
        (folder / "default" / SETTINGS).write_bytes(b"\xff\xfe\x00{")
        assert is_switched_on()
        sets(folder, "default", "[" * 100_000)
        assert is_switched_on()
        (folder / "odd" / SETTINGS).mkdir(parents=True)
        assert is_switched_on()
        sets(folder, "bob", json.dumps({SETTING: False}))
        assert not is_switched_on(), "the settings of others count all the same"


def case_the_variable_switches_it_off(folder: Path) -> None:
    with served(folder):
        for value, on in (("0", False), (" 0 ", False), ("1", True), ("", True)):
            with patch.dict("os.environ", {VARIABLE: value}):
                assert is_switched_on() is on, value


def case_a_host_is_idle_while_nothing_runs_and_nothing_waits(folder: Path) -> None:
    with served(folder) as queue:
        asked = _Queue()
        assert (asked.is_on(), asked.is_idle(), asked.waiting()) == (True, True, 0)
        for number in range(2):
            queue.put((number, f"prompt {number}", {}, {}, [], {}))
        assert (asked.is_idle(), asked.waiting()) == (False, 2)
        _, first = queue.get(timeout=1)
        assert asked.waiting() == 2, "one runs and one waits"
        queue.task_done(first, {}, None)
        _, second = queue.get(timeout=1)
        assert (asked.is_idle(), asked.waiting()) == (False, 1)
        queue.task_done(second, {}, None)
        assert asked.is_idle()
        sets(folder, "default", json.dumps({SETTING: False}))
        assert (asked.is_on(), asked.is_idle(), asked.waiting()) == (False, False, 0)


@contextmanager
def worker(queue: Any) -> Iterator[None]:
    """Does with ComfyUI's flags what its own thread does, once it is woken."""
    ended = threading.Event()

    def work() -> None:
        while not ended.is_set():
            queue.get(timeout=0.05)
            if queue.get_flags().get("unload_models"):
                free_models()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def case_a_full_card_is_freed_by_the_thread_that_owns_it(folder: Path) -> None:
    with served(folder) as queue, pretended(Card(16 * GIB)) as card, worker(queue):
        model = CardModel(card, 12 * GIB)
        memory.load_models_gpu([model])
        with patch.object(idle, "_free_bytes", lambda: card.free_bytes):
            _Queue().free_device(2 * GIB)
            assert model.is_loaded, "there is room beside it"
            _Queue().free_device(8 * GIB)
            assert not model.is_loaded


def case_nobody_is_sent_away_for_a_prompt_or_for_what_no_empty_card_could_hold(folder: Path) -> None:
    with served(folder) as queue, pretended(Card(16 * GIB)) as card:
        memory.load_models_gpu([CardModel(card, 12 * GIB)])
        with patch.object(idle, "_free_bytes", lambda: card.free_bytes):
            _Queue().free_device(17 * GIB)
            assert "unload_models" not in queue.get_flags(reset=False)
            queue.put((0, "prompt", {}, {}, [], {}))
            _Queue().free_device(8 * GIB)
        assert "unload_models" not in queue.get_flags(), "the prompt's models stay"
