"""What older versions wrote still works: workflows, engines, cache entries."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from i2v_tensorrt.cli.node_info import stored
from i2v_tensorrt.engine_builder.store.store import EngineStore
from i2v_tensorrt.pipeline.tensor_cache import ConditioningCache
from i2v_tensorrt.tests.helpers.graph import faults, to_prompt

RELEASED = Path(__file__).resolve().parents[2] / "released"
VERSIONS = sorted(path for path in RELEASED.iterdir() if path.is_dir())
WORKFLOWS = [(version.name, path.stem) for version in VERSIONS for path in sorted((version / "api").glob("*.json"))]
INFO = stored()

each_version = pytest.mark.parametrize("version", VERSIONS, ids=lambda path: path.name)


def test_there_are_some() -> None:
    assert [version.name for version in VERSIONS][0] == "0.1.0"
    assert len(WORKFLOWS) >= 2


@pytest.mark.parametrize(("version", "name"), WORKFLOWS)
def test_a_workflow_of_then_means_the_same_now(version: str, name: str) -> None:
    prompt = json.loads((RELEASED / version / "api" / f"{name}.json").read_text("utf-8"))
    graph = json.loads((RELEASED / version / "page" / f"{name}.json").read_text("utf-8"))
    assert faults(prompt, INFO) == []
    assert to_prompt(graph, INFO) == prompt


@each_version
def test_an_engine_of_then_is_found_by_the_name_of_now(version: Path, tmp_path: Path) -> None:
    """A key that changes without a new schema would have every user build again."""
    root = tmp_path / "engines"
    shutil.copytree(version / "engines", root)
    (root / "secret").rename(root / ".secret")
    (plan,) = EngineStore(root).plans()
    plan.verify()
    assert plan.folder.name == plan.manifest.key
    assert plan.read("network.bin") == b"weights"


@each_version
def test_a_cache_entry_of_then_is_read(version: Path, tmp_path: Path) -> None:
    hit = ConditioningCache(shutil.copytree(version / "cache", tmp_path / "cache")).get("a" * 64)
    assert hit is not None
    assert (hit.encode_s, hit.encoded.notes) == (1.5, ("A note.",))
    assert torch.equal(hit.encoded.tensors["context"], torch.arange(6.0).reshape(2, 3))
