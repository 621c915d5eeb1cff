"""Ways in which an engine's folder can be damaged or forged; each leaves it other than it was.

A mutation takes the folder, another engine's folder, and a source of random numbers.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from i2v_tensorrt.common.digest import canonical_json
from i2v_tensorrt.engine_builder.store.manifest import FILE_NAME, MAX_BYTES

Mutation = Callable[[Path, Path, random.Random], None]


def _binary(folder: Path, draw: random.Random) -> Path:
    """One of the files that the manifest names."""
    return draw.choice(sorted(path for path in folder.iterdir() if path.name != FILE_NAME))


def _manifest(folder: Path) -> Any:
    return json.loads((folder / FILE_NAME).read_text("utf-8"))


def _write(folder: Path, data: Any) -> None:
    (folder / FILE_NAME).write_text(json.dumps(data), "utf-8")


def _sealed(body: Any, secret: bytes) -> dict[str, Any]:
    return {"body": body, "hmac": hmac.new(secret, canonical_json(body).encode(), hashlib.sha256).hexdigest()}


def _own_secret(folder: Path) -> bytes:
    return (folder.parent / ".secret").read_bytes()


# Files


def flip_a_bit(folder: Path, other: Path, draw: random.Random) -> None:
    path = _binary(folder, draw)
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def truncate(folder: Path, other: Path, draw: random.Random) -> None:
    path = _binary(folder, draw)
    os.truncate(path, draw.randrange(path.stat().st_size))


def append(folder: Path, other: Path, draw: random.Random) -> None:
    with _binary(folder, draw).open("ab") as stream:
        stream.write(draw.randbytes(draw.randrange(1, 64)))


def remove(folder: Path, other: Path, draw: random.Random) -> None:
    _binary(folder, draw).unlink()


def folder_for_file(folder: Path, other: Path, draw: random.Random) -> None:
    path = _binary(folder, draw)
    path.unlink()
    path.mkdir()


def file_of_another(folder: Path, other: Path, draw: random.Random) -> None:
    path = _binary(folder, draw)
    path.write_bytes((other / path.name).read_bytes())


def splice(folder: Path, other: Path, draw: random.Random) -> None:
    path = _binary(folder, draw)
    mine, theirs = path.read_bytes(), (other / path.name).read_bytes()
    cut = draw.randrange(len(mine) - 1)
    path.write_bytes(mine[:cut] + theirs[cut:])


def linked_file(folder: Path, other: Path, draw: random.Random) -> None:
    """A link to the very same bytes, which could be others a moment later."""
    path = _binary(folder, draw)
    elsewhere = folder.parent / "elsewhere.bin"
    path.replace(elsewhere)
    path.symlink_to(elsewhere)


def pipe_for_file(folder: Path, other: Path, draw: random.Random) -> None:
    path = _binary(folder, draw)
    path.unlink()
    os.mkfifo(path)


# Manifests


def flip_a_manifest_bit(folder: Path, other: Path, draw: random.Random) -> None:
    whole = (folder / FILE_NAME).read_bytes()
    data = bytearray(whole)
    while _same(data, whole):
        data = bytearray(whole)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    (folder / FILE_NAME).write_bytes(data)


def _same(found: bytes | bytearray, expected: bytes) -> bool:
    """Whether two texts say the same in JSON, as 1e-6 and 1E-6 do."""
    try:
        return json.loads(found) == json.loads(expected)
    except ValueError:
        return False


def truncated_manifest(folder: Path, other: Path, draw: random.Random) -> None:
    os.truncate(folder / FILE_NAME, draw.randrange((folder / FILE_NAME).stat().st_size - 1))


def no_manifest(folder: Path, other: Path, draw: random.Random) -> None:
    (folder / FILE_NAME).unlink()


def manifest_of_another(folder: Path, other: Path, draw: random.Random) -> None:
    shutil.copyfile(other / FILE_NAME, folder / FILE_NAME)


def hmac_of_another(folder: Path, other: Path, draw: random.Random) -> None:
    _write(folder, {**_manifest(folder), "hmac": _manifest(other)["hmac"]})


def wrong_hmac(folder: Path, other: Path, draw: random.Random) -> None:
    values = ["", None, 0, [], {}, True, "0" * 64, "é" * 64, _manifest(folder)["hmac"].upper()[:-1] + "g"]
    _write(folder, {**_manifest(folder), "hmac": draw.choice(values)})


def no_field(folder: Path, other: Path, draw: random.Random) -> None:
    data = _manifest(folder)
    part = draw.choice([data, data["body"], data["body"]["spec"], data["body"]["target"]])
    part.pop(draw.choice(sorted(part)))
    _write(folder, data)


def other_value(folder: Path, other: Path, draw: random.Random) -> None:
    """Another architecture, version, verdict or size."""
    body = (data := _manifest(folder))["body"]
    part = draw.choice([body, body["target"], body["verdict"], *body["files"].values()])
    name = draw.choice(sorted(part))
    part[name] = draw.choice([value for value in ("sm_120", 0, -1, None, [], 10**40, {}) if value != part[name]])
    _write(folder, data)


def doubled_key(folder: Path, other: Path, draw: random.Random) -> None:
    """Most readers would take the last of the two and see no fault."""
    text = (folder / FILE_NAME).read_text("utf-8")
    places = [number for number, sign in enumerate(text) if sign == "{" and not text[number + 1 :].startswith("}")]
    at = draw.choice(places) + 1
    name = text[at:].split('"', 2)[1]
    (folder / FILE_NAME).write_text(f'{text[:at]}"{name}": 0, {text[at:]}', "utf-8")


def huge_manifest(folder: Path, other: Path, draw: random.Random) -> None:
    with (folder / FILE_NAME).open("ab") as stream:
        stream.write(draw.choice([b" ", b"\n"]) * MAX_BYTES)


def deep_manifest(folder: Path, other: Path, draw: random.Random) -> None:
    sign = draw.choice(["[", '{"body":', "1"])
    (folder / FILE_NAME).write_text(sign * draw.randrange(1000, 50_000), "utf-8")


def other_encoding(folder: Path, other: Path, draw: random.Random) -> None:
    text = (folder / FILE_NAME).read_text("utf-8")
    (folder / FILE_NAME).write_text(text, draw.choice(["utf-16", "utf-32", "utf-8-sig"]))


def linked_manifest(folder: Path, other: Path, draw: random.Random) -> None:
    elsewhere = folder.parent / "elsewhere.bin"
    (folder / FILE_NAME).replace(elsewhere)
    (folder / FILE_NAME).symlink_to(elsewhere)


def pipe_for_manifest(folder: Path, other: Path, draw: random.Random) -> None:
    (folder / FILE_NAME).unlink()
    os.mkfifo(folder / FILE_NAME)


# Forgeries: a changed file with the digest that is right for it


def _forge(folder: Path, draw: random.Random) -> Any:
    """Changes a file and enters its new digest; the HMAC is left as it was."""
    path = _binary(folder, draw)
    path.write_bytes(content := draw.randbytes(draw.randrange(1, 4096)))
    data = _manifest(folder)
    data["body"]["files"][path.name] = {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    _write(folder, data)
    return data["body"]


def right_digest(folder: Path, other: Path, draw: random.Random) -> None:
    _forge(folder, draw)


def foreign_secret(folder: Path, other: Path, draw: random.Random) -> None:
    _write(folder, _sealed(_forge(folder, draw), draw.randbytes(32)))


def other_schema(folder: Path, other: Path, draw: random.Random) -> None:
    """Written here, by another version of the pack."""
    body = {**_manifest(folder)["body"], "schema": draw.choice([0, 2, "1", None, 1.5])}
    _write(folder, _sealed(body, _own_secret(folder)))


def other_target(folder: Path, other: Path, draw: random.Random) -> None:
    """Written here for another GPU or version: an honest manifest under the wrong name."""
    body = _manifest(folder)["body"]
    body["target"][draw.choice(["arch", "backend_version", "exporter"])] = f"other {draw.random()}"
    _write(folder, _sealed(body, _own_secret(folder)))


def stale_digest(folder: Path, other: Path, draw: random.Random) -> None:
    """Written here, but of other files than those that lie there."""
    body = _manifest(folder)["body"]
    draw.choice(sorted(body["files"].items()))[1]["sha256"] = draw.randbytes(32).hex()
    _write(folder, _sealed(body, _own_secret(folder)))


# Folders


def folder_of_another(folder: Path, other: Path, draw: random.Random) -> None:
    shutil.rmtree(folder)
    shutil.copytree(other, folder)


def renamed_folder(folder: Path, other: Path, draw: random.Random) -> None:
    folder.rename(folder.with_name(draw.randbytes(32).hex()))


def linked_folder(folder: Path, other: Path, draw: random.Random) -> None:
    folder.rename(folder.parent / "elsewhere")
    folder.symlink_to(folder.parent / "elsewhere", target_is_directory=True)


def dangling_folder(folder: Path, other: Path, draw: random.Random) -> None:
    shutil.rmtree(folder)
    folder.symlink_to(folder.parent / "nowhere")


def file_for_folder(folder: Path, other: Path, draw: random.Random) -> None:
    shutil.rmtree(folder)
    folder.write_bytes(draw.randbytes(100))


MUTATIONS: tuple[Mutation, ...] = (
    flip_a_bit,
    truncate,
    append,
    remove,
    folder_for_file,
    file_of_another,
    splice,
    linked_file,
    pipe_for_file,
    flip_a_manifest_bit,
    truncated_manifest,
    no_manifest,
    manifest_of_another,
    hmac_of_another,
    wrong_hmac,
    no_field,
    other_value,
    doubled_key,
    huge_manifest,
    deep_manifest,
    other_encoding,
    linked_manifest,
    pipe_for_manifest,
    right_digest,
    foreign_secret,
    other_schema,
    other_target,
    stale_digest,
    folder_of_another,
    renamed_folder,
    linked_folder,
    dangling_folder,
    file_for_folder,
)
