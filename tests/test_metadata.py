"""What the registry, pip and ComfyUI's Manager are told agrees."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def listed(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_pyproject_and_requirements_name_the_same_packages() -> None:
    """By hand, since tomllib is newer than the oldest Python that is served."""
    declared = re.search(r"^dependencies = \[(.*?)\]", (ROOT / "pyproject.toml").read_text("utf-8"), re.M | re.S)
    assert declared is not None
    assert re.findall(r'"([^"]+)"', declared[1]) == listed((ROOT / "requirements.txt").read_text("utf-8"))


def test_what_comfyui_owns_is_not_pinned() -> None:
    names = {re.split(r"[<>=!~; ]", line)[0] for line in listed((ROOT / "requirements.txt").read_text("utf-8"))}
    assert not names & {"torch", "numpy", "transformers", "safetensors", "pillow", "av", "aiohttp", "filelock"}
