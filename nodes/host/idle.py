"""Builds engines while ComfyUI's queue is empty, unless the user has switched that off."""

from __future__ import annotations

import json
import os
import time
from functools import lru_cache
from pathlib import Path

import folder_paths
import torch
from server import PromptServer

from ...runtime.engines.idle_builds import IdleBuilds
from .memory import device
from .patcher import memory_of

SETTING = "I2VTensorRT.BuildWhenIdle"
"""Name of the page's setting; web/i2v_tensorrt.js shows it."""
VARIABLE = "I2VTRT_BUILD_WHEN_IDLE"
"""Environment variable for servers without a page: 0 switches building off."""
SETTINGS = "comfy.settings.json"
PATIENCE_S = 10.0
POLL_S = 0.2


class _Queue:
    """ComfyUI's queue of prompts, as `IdleBuilds` asks for it."""

    def is_on(self) -> bool:
        return is_switched_on()

    def is_idle(self) -> bool:
        return self.waiting() == 0 and is_switched_on()

    def waiting(self) -> int:
        return int(PromptServer.instance.prompt_queue.get_tasks_remaining())

    def free_device(self, needed_bytes: int) -> None:
        """Has ComfyUI unload its models in its own thread, where the GPU is too full for the build."""
        if device().type != "cuda" or not self.is_idle():
            return
        if not _free_bytes() < needed_bytes <= memory_of(device()).total_bytes:
            return
        PromptServer.instance.prompt_queue.set_flag("unload_models", True)
        deadline = time.monotonic() + PATIENCE_S
        while _free_bytes() < needed_bytes and time.monotonic() < deadline and self.is_idle():
            time.sleep(POLL_S)


def _free_bytes() -> int:
    """Bytes of the GPU that another process could have, without the memory that PyTorch keeps for its next tensors."""
    return int(torch.cuda.mem_get_info(device())[0])


def is_switched_on() -> bool:
    """Whether building is on: neither the variable nor the settings of any of the server's users switch it off."""
    if os.environ.get(VARIABLE, "1").strip() == "0":
        return False
    users = Path(folder_paths.get_user_directory()).glob(f"*/{SETTINGS}")
    return all(_setting(path) is not False for path in users)


def _setting(path: Path) -> object:
    try:
        return json.loads(path.read_text("utf-8")).get(SETTING)
    except (OSError, ValueError, RecursionError, AttributeError):  # half-written, or no settings at all
        return None


@lru_cache(maxsize=1)
def idle_builds() -> IdleBuilds:
    """The server's one, for all sets of engines."""
    return IdleBuilds(_Queue())
