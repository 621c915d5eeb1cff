"""Names from a workflow: whatever is accepted stays below its root and can be made on every platform."""

from pathlib import Path, PureWindowsPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from i2v_tensorrt.common.errors import InputError
from i2v_tensorrt.nodes.host.safe_name import check_name, inside, listed

GOOD = [
    "clip",
    "video/clip",
    "a/b/c/d",
    "my clip (1)",
    ".hidden",
    "~/x",
    "%year%-%month%/clip",
    "Ёлка/雪",
    "🎬",
    "console",
]
ESCAPES = ["..", "../x", "a/../b", "a/..", "/etc/x", "//host/x", ".", "./x", "a//b", "a/", "/"]
WINDOWS = ["C:\\x", "C:x", "a\\b", "..\\x", "\\\\host\\x", "a:stream", "a*", 'a"b', "a?", "a<b", "a|b", "clip.", "a /b"]
RESERVED = [
    "NUL",
    "con",
    "video/aux",
    "Com1.mp4",
    "lpt9",
    "prn.tar.gz",
    "CONIN$",
    "conout$",
    "COM¹",
    "lpt³.x",
    "nul .txt",
]
CONTROLS = ["a\0b", "a\nb", "\x1b[31m", "a\x7f", "\ud800"]

nasty = st.sampled_from(
    [".", "..", "/", "\\", ":", "~", "%", "$", " ", "\0", "\n", "C:", "con", "NUL", "COM1", "¹", "…", "‮", "\ud800", "é"]
)
names = st.lists(nasty | st.text(max_size=3), max_size=8).map("".join)


@pytest.mark.parametrize("name", GOOD)
def test_a_plain_name_is_taken_as_it_is(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", [*ESCAPES, *WINDOWS, *RESERVED, *CONTROLS, "", None, 3, b"clip", ["clip"]], ids=repr)
def test_any_other_is_refused_in_one_sentence(name: object) -> None:
    with pytest.raises(InputError) as caught:
        check_name(name)
    sentence = str(caught.value)
    assert sentence.startswith(("A file name", "A part of a file name"))
    assert sentence.isprintable()
    assert len(sentence) < 300


@pytest.mark.parametrize(
    ("part", "room"), [("x" * 223, True), ("x" * 224, False), ("é" * 112, False), ("é" * 111, True)]
)
def test_length_is_counted_in_bytes_of_each_part(part: str, room: bool) -> None:
    if room:
        assert check_name(f"{part}/{part}")
    else:
        with pytest.raises(InputError, match="at most 223 bytes, found 224"):
            check_name(f"video/{part}")


def test_a_name_of_many_parts_has_an_end() -> None:
    assert check_name("/".join(["long"] * 200))
    with pytest.raises(InputError, match="at most 1000 bytes in all, found 1004"):
        check_name("/".join(["long"] * 201))


@given(names)
def test_what_is_accepted_lies_below_the_root(name: str) -> None:
    try:
        check_name(name)
    except InputError:
        return
    root = Path("/out/put")
    path = inside(root / name, root)
    assert path != root
    assert path == root / name  # nothing in it is followed or folded
    windows = PureWindowsPath("X:/out", name)
    assert windows.parts[:2] == ("X:\\", "out")
    assert len(windows.parts) == 2 + len(name.split("/"))
    assert ".." not in windows.parts


@settings(max_examples=50)
@given(names)
def test_what_is_accepted_can_be_made(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    try:
        check_name(name)
    except InputError:
        return
    path = tmp_path_factory.mktemp("root") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    assert [found for found in path.parent.iterdir() if found.name == path.name]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with links: `out` leads to a folder beside it, `in` to one below."""
    root = tmp_path / "root"
    (root / "below").mkdir(parents=True)
    (tmp_path / "beside").mkdir()
    (root / "out").symlink_to(tmp_path / "beside", target_is_directory=True)
    (root / "in").symlink_to(root / "below", target_is_directory=True)
    return root


@pytest.mark.parametrize("name", ["out", "out/clip.mp4", "out/new/clip.mp4", "in/../../beside", ".."])
def test_a_link_that_leads_out_is_seen(root: Path, name: str) -> None:
    with pytest.raises(InputError, match="leads out of it"):
        inside(root / name, root)


@pytest.mark.parametrize("name", ["in/clip.mp4", "below/clip.mp4", "new/clip.mp4"])
def test_a_link_that_stays_is_followed(root: Path, name: str) -> None:
    assert inside(root / name, root).is_relative_to(root)


def test_a_root_that_is_itself_a_link_is_followed(root: Path) -> None:
    assert inside(root / "in" / "clip.mp4", root / "in") == root / "below" / "clip.mp4"


def test_a_neighbour_with_the_same_beginning_is_outside(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        inside(tmp_path / "output2" / "clip", tmp_path / "output")


FOUND = {
    name: Path("/models") / name for name in ("wan/style.safetensors", "plain.safetensors", "windows\\a.safetensors")
}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("plain.safetensors", "plain.safetensors"),
        ("wan/style.safetensors", "wan/style.safetensors"),
        ("wan\\style.safetensors", "wan/style.safetensors"),
        ("windows/a.safetensors", "windows\\a.safetensors"),
        ("windows\\a.safetensors", "windows\\a.safetensors"),
    ],
)
def test_a_listed_name_is_found_with_either_slash(name: str, expected: str) -> None:
    assert listed(name, FOUND) == FOUND[expected]


@pytest.mark.parametrize(
    "name",
    [
        "..\\models\\plain.safetensors",
        "wan\\..\\plain.safetensors",
        "wan\\\\style.safetensors",
        "\\wan\\style.safetensors",
        "C:\\models\\plain.safetensors",
        "style.safetensors",
        "",
        None,
        ["wan/style.safetensors"],
    ],
)
def test_a_name_that_is_not_listed_leads_nowhere(name: object) -> None:
    assert listed(name, FOUND) is None
