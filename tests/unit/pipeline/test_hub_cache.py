"""Folders as Hugging Face's cache keeps them."""

import os
import shutil
from pathlib import Path

import pytest

from i2v_tensorrt.pipeline.models.checkpoints.hub_cache import snapshots
from i2v_tensorrt.pipeline.models.registry import open_model

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs links")
OLD, NEW = "0a" * 20, "f1" * 20


def cached(folder: Path, root: Path, revision: str) -> Path:
    """The folder's files as a revision: links into a folder of blobs."""
    repository = root / "models--somebody--model-xl"
    made = repository / "snapshots" / revision
    for number, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        blob, link = repository / "blobs" / f"{number:040x}", made / path.relative_to(folder)
        blob.parent.mkdir(parents=True, exist_ok=True)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return made


def test_a_repository_is_found_by_its_name_and_opens(tiny_folder: Path, tmp_path: Path) -> None:
    made = cached(tiny_folder, tmp_path, OLD)
    (tmp_path / "models--somebody--other" / "snapshots" / NEW).mkdir(parents=True)
    assert list(snapshots(tmp_path)) == [("somebody/model-xl", made)]
    assert open_model(made).encode_sha256 == open_model(tiny_folder).encode_sha256


def test_of_several_revisions_that_of_main_counts_and_else_the_newest(tiny_folder: Path, tmp_path: Path) -> None:
    old, new = (cached(tiny_folder, tmp_path, revision) for revision in (OLD, NEW))
    os.utime(old, (1, 1))
    assert dict(snapshots(tmp_path)) == {"somebody/model-xl": new}
    (tmp_path / "models--somebody--model-xl" / "refs").mkdir()
    for text, expected in ((OLD, old), ("gone", new)):
        (tmp_path / "models--somebody--model-xl" / "refs" / "main").write_text(text)
        assert dict(snapshots(tmp_path)) == {"somebody/model-xl": expected}
