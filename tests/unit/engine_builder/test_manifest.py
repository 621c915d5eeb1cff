"""The manifest: what was sealed comes back, what was changed does not."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from i2v_tensorrt.common.errors import EngineError
from i2v_tensorrt.engine_builder.store import manifest as manifest_module
from i2v_tensorrt.engine_builder.store.manifest import FileDigest, Manifest, ParityReport, file_digest, seal, unseal

from ...helpers.toys import TARGET, toy_spec

SECRET = b"s" * 32
VERDICT = ParityReport(0.9999999, 98.7, 1.5e-6, True, ({"batch": 1, "frames": 1}, {"batch": 2, "frames": 4}))
MANIFEST = Manifest(
    spec=toy_spec(),
    target=TARGET,
    files={"network.onnx": FileDigest(1234, "ab" * 32), "weights/ü.data": FileDigest(0, "cd" * 32)},
    verdict=VERDICT,
    build_s=12.345,
    created_at="2026-01-02T03:04:05+00:00",
    details={"exporter": "torch 2, opset 20"},
)
SEALED = seal(MANIFEST, SECRET)


@pytest.mark.parametrize(
    "manifest",
    [
        MANIFEST,
        replace(MANIFEST, verdict=None),
        replace(MANIFEST, files={}, details={}),
        replace(MANIFEST, islands=("up_blocks.1", "mid_block")),
        replace(MANIFEST, verdict=replace(VERDICT, timesteps=5)),
    ],
)
def test_what_was_sealed_comes_back(manifest: Manifest) -> None:
    assert unseal(seal(manifest, SECRET), SECRET, manifest.key) == manifest


def test_a_manifest_is_readable_and_says_its_key() -> None:
    body = json.loads(SEALED)["body"]
    assert body["key"] == MANIFEST.key
    assert body["spec"]["precision"] == "fp32"
    assert MANIFEST.size_bytes == 1234


def test_another_secret_or_another_name_does_not_open_it() -> None:
    with pytest.raises(EngineError, match="not written by this installation"):
        unseal(SEALED, b"t" * 32, MANIFEST.key)
    with pytest.raises(EngineError, match="^Engine bbbbbbbbbbbb has the manifest of another engine"):
        unseal(SEALED, SECRET, "b" * 64)


def test_a_manifest_is_read_once_and_a_changed_one_is_not_taken_for_it() -> None:
    first = unseal(SEALED, SECRET, MANIFEST.key)
    assert unseal(SEALED, SECRET, MANIFEST.key) is first
    for text, secret in ((SEALED.replace("1", "2", 1), SECRET), (SEALED, b"t" * 32)):
        with pytest.raises(EngineError):
            unseal(text, secret, MANIFEST.key)


def resealed(change: Callable[[dict[str, Any]], object]) -> str:
    """A manifest whose body was changed by somebody who knows the secret: another version of the pack."""
    body = json.loads(SEALED)["body"]
    change(body)
    return json.dumps({"body": body, "hmac": manifest_module._mac(body, SECRET)})


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body.update(schema=body["schema"] + 1),
        lambda body: body.pop("schema"),
        lambda body: body.pop("spec"),
        lambda body: body.pop("files"),
        lambda body: body.update(files=[]),
        lambda body: body.update(files={"x": {"size_bytes": 1}}),
        lambda body: body.update(verdict={}),
        lambda body: body.update(verdict="good"),
        lambda body: body["verdict"].update(psnr=1),
        lambda body: body.update(target={"backend": "toy"}),
        lambda body: body.update(build_s="long"),
        lambda body: body.update(details=3),
        lambda body: body["spec"].update(precision="int8"),
        lambda body: body["spec"]["network"].update(surprise=1),
    ],
)
def test_a_manifest_of_another_version_is_an_engine_error(change: Callable[[dict[str, Any]], object]) -> None:
    with pytest.raises(EngineError):
        unseal(resealed(change), SECRET, MANIFEST.key)


@settings(deadline=None)
@given(st.integers(0, len(SEALED) - 1), st.characters(codec="utf-8"))
def test_a_changed_character_is_seen_or_means_nothing(place: int, character: str) -> None:
    changed = SEALED[:place] + character + SEALED[place + 1 :]
    try:
        assert unseal(changed, SECRET, MANIFEST.key) == MANIFEST
    except EngineError as error:
        assert str(error).startswith(f"Engine {MANIFEST.key[:12]}")


@settings(deadline=None)
@given(st.integers(0, len(SEALED) - 1))
def test_a_truncated_manifest_is_malformed(length: int) -> None:
    with pytest.raises(EngineError, match="malformed"):
        unseal(SEALED[:length], SECRET, MANIFEST.key)


@settings(deadline=None)
@given(st.text() | st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists).map(json.dumps))
def test_foreign_text_is_an_engine_error(text: str) -> None:
    with pytest.raises(EngineError):
        unseal(text, SECRET, MANIFEST.key)


@pytest.mark.parametrize("found", ["{", '"build_s"'])
def test_a_key_that_stands_twice_is_refused(found: str) -> None:
    """The last of two would count for this reader, the first perhaps for another."""
    twice = {"{": '{"hmac": "",', '"build_s"': '"created_at": "never", "build_s"'}[found]
    with pytest.raises(EngineError, match="twice"):
        unseal(SEALED.replace(found, twice, 1), SECRET, MANIFEST.key)


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 10_000, 9 << 20])
def test_a_files_digest_is_that_of_its_bytes(tmp_path: Path, size: int) -> None:
    """A large file is read in blocks to its end: three of them, the last not full."""
    content = (bytes(range(251)) * (size // 251 + 1))[:size]
    (tmp_path / "file").write_bytes(content)
    assert file_digest(tmp_path / "file") == FileDigest(size, hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize("change", [lambda body: body.pop("islands"), lambda body: body["verdict"].pop("timesteps")])
def test_a_manifest_from_before_islands_and_timesteps_has_none_and_one(
    change: Callable[[dict[str, Any]], object],
) -> None:
    assert unseal(resealed(change), SECRET, MANIFEST.key) == MANIFEST
