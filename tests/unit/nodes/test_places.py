"""A free name below a root, in a folder that stays the one that was checked."""

import hashlib
import os
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from i2v_tensorrt.common.atomic_file import atomic_file
from i2v_tensorrt.common.errors import InputError, StorageError
from i2v_tensorrt.nodes.host import output_path
from i2v_tensorrt.nodes.host.output_path import digest_below, expanded, free_place


def saved(root: Path, prefix: str, suffix: str = ".mp4") -> str:
    """Writes a file and says where it is, as the page asks for it."""
    with free_place(root, prefix, suffix, 64, 48) as place, atomic_file(place.path) as temporary:
        temporary.write_bytes(b"x")
    assert (root / place.subfolder / place.filename).read_bytes() == b"x"
    return f"{place.subfolder}/{place.filename}".strip("/")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "output"


def test_files_are_counted_by_their_stem_and_folder(root: Path) -> None:
    names = [saved(root, prefix) for prefix in ("clip", "clip", "a/b/clip", "clip.x", "Clip")]
    assert names == [
        "clip_00001_.mp4",
        "clip_00002_.mp4",
        "a/b/clip_00001_.mp4",
        "clip.x_00001_.mp4",
        "Clip_00003_.mp4",
    ]


@pytest.mark.parametrize("has_links", [True, False], ids=["links", "no links"])
def test_two_that_save_at_once_write_over_nothing(root: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool) -> None:
    """Two servers over one output folder, while a node of ComfyUI's saves in it too."""

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    if not has_links:  # as exFAT and some network drives
        monkeypatch.setattr(os, "link", refuse)
    with free_place(root, "clip", ".mp4", 1, 1) as one, free_place(root, "clip", ".mp4", 1, 1) as other:
        for place, content in ((one, b"one"), (other, b"other")):
            with atomic_file(place.path) as temporary:
                temporary.write_bytes(content)
        (root / "clip_00001_.mp4").write_bytes(b"a third")
    found = {path.name: path.read_bytes() for path in root.iterdir()}
    assert found == {"clip_00001_.mp4": b"a third", one.filename: b"one", other.filename: b"other"}


@pytest.mark.parametrize("taken", range(3))
def test_a_name_that_is_taken_in_the_last_moment_stays(root: Path, monkeypatch: pytest.MonkeyPatch, taken: int) -> None:
    """Between the look at the folder and the naming of the file."""
    names = [f"clip_{number:05}_.mp4" for number in range(1, taken + 1)]
    listed = os.listdir

    def listing(folder: Path) -> list[str]:
        found = listed(folder)
        for name in names:
            (Path(folder) / name).write_bytes(b"another's")
        return found

    monkeypatch.setattr(os, "listdir", listing)
    assert saved(root, "clip") == f"clip_{taken + 1:05}_.mp4"
    assert all((root / name).read_bytes() == b"another's" for name in names)


@pytest.fixture
def bucket(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root on a drive on which a file is written from start to end, and nothing is renamed or linked."""
    replace = os.replace

    def refuse(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    def replaced(source: Path, target: Path) -> None:
        if Path(target).resolve().is_relative_to(root.resolve()):
            refuse()
        replace(source, target)

    monkeypatch.setattr(os, "replace", replaced)
    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(output_path, "_DRIVES", {})  # it is none such otherwise
    return root


def test_a_drive_over_a_bucket_takes_a_copy(bucket: Path, tmp_path: Path) -> None:
    scratch = tmp_path / "temp"
    for content in (b"one", b"two"):
        with (
            free_place(bucket, "s3/clip", ".mp4", 1, 1, scratch=scratch) as place,
            atomic_file(place.path) as temporary,
        ):
            temporary.write_bytes(content)
        assert (bucket / "s3" / place.filename).read_bytes() == content
    assert sorted(path.name for path in (bucket / "s3").iterdir()) == ["clip_00001_.mp4", "clip_00002_.mp4"]
    assert list(scratch.iterdir()) == []


def test_a_copy_that_fails_leaves_nothing(bucket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Any, target: Any, length: int) -> None:
        target.write(source.read(2))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with (
        pytest.raises(StorageError, match=r"output/clip_00001_\.mp4 could not be written: No space left"),
        free_place(bucket, "clip", ".mp4", 1, 1, scratch=tmp_path / "temp") as place,
    ):
        place.path.write_bytes(b"whole")
    assert list(bucket.iterdir()) == [] and list((tmp_path / "temp").iterdir()) == []


def test_what_was_not_written_leaves_nothing(root: Path) -> None:
    with pytest.raises(KeyError), free_place(root, "clip", ".mp4", 1, 1) as place:
        place.path.write_bytes(b"half")
        raise KeyError
    assert list(root.iterdir()) == []


@pytest.mark.parametrize(
    "other", ["clip_x_.mp4", "clip_-7_.mp4", "clip_99999999999_.mp4", "clip_5", "clipping_00009_.mp4"]
)
def test_what_is_no_number_of_ours_does_not_count(root: Path, other: str) -> None:
    root.mkdir()
    (root / other).write_bytes(b"")
    assert saved(root, "clip") == "clip_00001_.mp4"


def test_words_for_time_and_size_are_filled_in(root: Path) -> None:
    year = time.strftime("%Y")
    assert saved(root, "%year%/%width%x%height%%other%") == f"{year}/64x48%other%_00001_.mp4"


@pytest.mark.parametrize(
    ("form", "strftime"),
    [
        ("yyyy-MM-dd", "%Y-%m-%d"),
        ("yy.M.d", None),
        ("yyyyMMddhhmmss", "%Y%m%d%H%M%S"),
        ("hh:mm", "%H-%M"),
        ("yyyy/MM", "%Y/%m"),
        ("", ""),
    ],
)
def test_the_pages_notation_of_dates_is_understood(
    monkeypatch: pytest.MonkeyPatch, form: str, strftime: str | None
) -> None:
    now = time.strptime("2026-03-04 05:06:07", "%Y-%m-%d %H:%M:%S")
    monkeypatch.setattr(time, "localtime", lambda *_: now)
    expected = "26.3.4" if strftime is None else time.strftime(strftime, now)
    assert expanded(f"a%date:{form}%", 1, 1) == f"a{expected}"


@pytest.mark.parametrize(
    "prefix", ["video\\wan\\clip", "video/wan/clip/", "video//wan//clip", "./video/./wan/clip", "video /wan./clip. "]
)
def test_prefixes_mean_what_they_mean_to_comfyui(prefix: str) -> None:
    assert expanded(prefix, 1, 1) == "video/wan/clip"


@pytest.mark.parametrize(
    "prefix", ["..\\x", "\\x", "\\\\host\\x", "C:\\x", "%date:../..%", "%date:/%", "./", "//", ".. /x", "... "]
)
def test_no_notation_leads_out(prefix: str) -> None:
    with pytest.raises(InputError, match="^A file name "):
        expanded(prefix, 1, 1)


PIECES = st.sampled_from(
    [
        "%date:yyyy-MM-dd%",
        "%date:",
        "%year%",
        "%width%",
        "%",
        "/",
        "\\",
        "..",
        ".",
        " ",
        "C:",
        "nul",
        "é",
        "雪",
        "\0",
        "\n",
    ]
)
PREFIXES = st.lists(PIECES | st.text(max_size=4), max_size=9).map("".join)


@settings(max_examples=500, deadline=None)
@given(PREFIXES)
def test_any_prefix_gives_a_place_below_the_root_or_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, prefix: str
) -> None:
    base = tmp_path_factory.getbasetemp() / "prefixes"
    root = base / "output"
    try:
        with free_place(root, prefix, ".mp4", 64, 48) as place:
            place.path.write_bytes(b"x")
    except InputError as refused:
        assert re.match(r"A (part of a )?file name ", str(refused)) and str(refused).isprintable()
    else:
        path = root / place.subfolder / place.filename
        path.unlink()
        assert ".." not in path.parts and path.suffix == ".mp4"
    assert {path.name for path in base.glob("*")} <= {"output"}


@pytest.mark.parametrize("prefix", ["../x", "/x", "a/../../x", "nul", "%\0%", "", "x" * 300])
def test_what_leads_out_is_refused_before_anything_is_made(root: Path, prefix: str) -> None:
    with pytest.raises(InputError), free_place(root, prefix, ".mp4", 1, 1):
        pass
    assert not root.exists()


def test_a_failure_is_told_by_the_folders_own_name(root: Path) -> None:
    with (
        pytest.raises(StorageError, match=r"output/video/clip_00001_\.mp4 could not be written: No space left"),
        free_place(root, "video/clip", ".mp4", 1, 1) as place,
        atomic_file(place.path),
    ):
        raise OSError(28, "No space left on device")


@pytest.mark.skipif(sys.platform != "linux", reason="an open folder has a path of its own on Linux")
def test_a_folder_that_becomes_a_link_while_it_is_written_to_leads_nowhere(root: Path, tmp_path: Path) -> None:
    outside, aside = tmp_path / "outside", tmp_path / "aside"
    outside.mkdir()
    with free_place(root, "video/clip", ".mp4", 1, 1) as place, atomic_file(place.path) as temporary:
        (root / "video").rename(aside)
        (root / "video").symlink_to(outside, target_is_directory=True)
        temporary.write_bytes(b"x")
    assert [path.name for path in aside.iterdir()] == ["clip_00001_.mp4"]
    assert list(outside.iterdir()) == []
    with pytest.raises(InputError, match="leads out of it"), free_place(root, "video/clip", ".mp4", 1, 1):
        pass


def test_links_that_stay_inside_are_followed(root: Path) -> None:
    (root / "below").mkdir(parents=True)
    (root / "in").symlink_to(root / "below", target_is_directory=True)
    assert saved(root, "in/clip") == "in/clip_00001_.mp4"
    assert (root / "below" / "clip_00001_.mp4").is_file()


def test_a_link_that_leads_out_is_followed_where_comfyui_follows_it(root: Path, tmp_path: Path) -> None:
    """ComfyUI 0.28 does, and is asked for the folder's name below its output."""
    (tmp_path / "drive").mkdir()
    root.mkdir()
    (root / "video").symlink_to(tmp_path / "drive", target_is_directory=True)
    asked: list[str] = []

    def may_leave(subfolder: str) -> bool:
        asked.append(subfolder)
        return subfolder == "video/new"

    with free_place(root, "video/new/clip", ".mp4", 1, 1, may_leave) as place:
        place.path.write_bytes(b"x")
    assert (tmp_path / "drive" / "new" / "clip_00001_.mp4").read_bytes() == b"x"
    assert (place.subfolder, asked) == ("video/new", ["video/new"])
    assert digest_below(root, "video/new", place.filename, may_leave) is not None
    assert digest_below(root, "video/new", place.filename) is None
    with pytest.raises(InputError, match="leads out of it"), free_place(root, "video/clip", ".mp4", 1, 1, may_leave):
        pass


def test_a_file_below_the_root_has_a_digest(root: Path) -> None:
    (root / "a").mkdir(parents=True)
    (root / "a" / "clip.mp4").write_bytes(b"clip")
    expected = hashlib.sha256(b"clip").hexdigest()
    assert digest_below(root, "a", "clip.mp4") == expected
    (root / "clip.mp4").write_bytes(b"clip")
    assert digest_below(root, "", "clip.mp4") == expected


@pytest.mark.parametrize(
    ("subfolder", "filename"),
    [
        ("a", "none.mp4"),
        ("a", "../clip.mp4"),
        ("..", "clip.mp4"),
        ("out", "clip.mp4"),
        ("a", "link.mp4"),
        ("", "a"),
        ("/", "clip.mp4"),
        ("none", "clip.mp4"),
        ("a", ""),
        ("nul", "clip.mp4"),
    ],
)
def test_what_lies_elsewhere_or_is_no_plain_file_has_none(
    root: Path, tmp_path: Path, subfolder: str, filename: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    for folder in (tmp_path, outside):
        (folder / "clip.mp4").write_bytes(b"clip")
    (root / "a").mkdir(parents=True)
    (root / "out").symlink_to(outside, target_is_directory=True)
    (root / "a" / "link.mp4").symlink_to(outside / "clip.mp4")
    assert digest_below(root, subfolder, filename) is None
