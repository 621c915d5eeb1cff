"""Prompts as nobody means them: any value in any widget, links that lead anywhere, names that lead out."""

from __future__ import annotations

import copy
import json
import random
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from i2v_tensorrt.tests.live.graphs import Prompt, builder, clip, node, with_engines
from i2v_tensorrt.tests.live.ids import BUILDER, CHECKPOINT, CONDITIONING, DECODE, PICTURE, SAMPLER, SAVE

LEADS_OUT = "leads-out"
"""A link in the output folder."""
PARTS = (
    "..",
    ".",
    "",
    "~",
    "video",
    "clip",
    LEADS_OUT,
    "CON",
    "nul.txt",
    "COM1",
    "…",
    "．．",
    "%2e%2e",
    "..;",
    "a b",
    "é",
)
GLUE = ("/", "/", "/", "\\", "//", "/./", "\\\\", "%2f", "∕", ":", "\0", "\n")
ODD = (
    "\0",
    "\x1b[2J\x1b[31m",
    "\r\nSet-Cookie: a=b",
    "\u202egpj.4pm",
    "\ufeff",
    "\ud800",
    "%year%-%month%-%day%/%hour%%minute%%second%",
    "%width%%height%%batch_num%",
    "${HOME}",
    "$(touch x)",
    "`id`",
    "{0.__class__}",
    "%s%n%d",
    "-rf",
    "'; DROP TABLE--",
    "<script>alert(1)</script>",
    "file:///etc/passwd",
    "\\\\host\\share\\x",
    "C:\\Windows\\x",
    "/dev/null",
    "/proc/self/environ",
    "x" * 5000,
    "é" * 300,
    "/".join("d" * 60),
    ".part",
    "x.mp4",
    " ",
    "video/",
    "/",
)
NUMBERS = (0, -1, 1, 2, 3, 7, 8, 63, 64, 65, 72, 100, 2**31, 2**63, 2**64, -(2**63), 10**30, 0.5, -0.0, 1e-320, 1e308)
WORDS = (
    "",
    "eager",
    "auto",
    "fp32",
    "none",
    "true",
    "ddim",
    "0",
    "64",
    "nan",
    "[]",
    "2",
    "core",
    CHECKPOINT,
    "\0",
    "é",
)


def hostile_name(draw: random.Random, outside: Path) -> str:
    """A text that would lead somewhere else, or be no name at all."""
    kind = draw.random()
    if kind < 0.25:
        return "../" * draw.randint(1, 12) + draw.choice([str(outside)[1:], "etc/x", f"{LEADS_OUT}/x", outside.name])
    if kind < 0.4:
        return draw.choice([str(outside / "x"), f"{LEADS_OUT}/x", f"{LEADS_OUT}/../x", f"a/{LEADS_OUT}/x", LEADS_OUT])
    if kind < 0.6:
        name = draw.choice(["clip", "video/clip", str(outside)])
        at = draw.randint(0, len(name))
        return name[:at] + draw.choice(ODD) + name[at:]
    if kind < 0.7:
        return draw.choice(ODD)
    pieces = [draw.choice(PARTS) for _ in range(draw.randint(1, 7))]
    return "".join(piece + draw.choice(GLUE) for piece in pieces)[: draw.choice([-1, 10_000])]


def any_json(draw: random.Random) -> Any:
    """A JSON value of any kind, NaN and infinities too.

    None that ComfyUI itself takes for a link, for one to a node that is not there ends its only worker.
    """
    while looks_like_a_link(found := _any_json(draw)):
        pass
    return found


def looks_like_a_link(value: Any) -> bool:
    if isinstance(value, dict) and "__value__" in value:
        return looks_like_a_link(value["__value__"])
    return (
        isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int | float)
    )


def _any_json(draw: random.Random, depth: int = 0) -> Any:
    makers: list[Callable[[], Any]] = [
        lambda: draw.choice([None, True, False]),
        lambda: draw.choice(NUMBERS),
        lambda: draw.choice([float("nan"), float("inf"), float("-inf")]),
        lambda: draw.choice(WORDS),
        lambda: draw.choice(ODD),
        lambda: "".join(chr(draw.randrange(0x250)) for _ in range(draw.randint(0, 20))),
    ]
    if depth < 3:
        makers += [
            lambda: [_any_json(draw, depth + 1) for _ in range(draw.randint(0, 3))],
            lambda: {draw.choice(WORDS): _any_json(draw, depth + 1) for _ in range(draw.randint(0, 3))},
            lambda: {"__value__": _any_json(draw, depth + 1)},
        ]
    return draw.choice(makers)()


SOURCES: dict[str, dict[str, Any]] = {
    "20": node("EmptyImage", width=48, height=32, batch_size=1, color=0),
    "21": node("EmptyImage", width=1, height=1, batch_size=3, color=16777215),
    "22": node("EmptyLatentImage", width=64, height=64, batch_size=2),
    "23": node("EmptyLatentImage", width=16, height=1024, batch_size=1),
    "24": node("EmptySD3LatentImage", width=64, height=64, batch_size=1),
    "25": node("EmptyHunyuanLatentVideo", width=64, height=64, length=5, batch_size=1),
    "26": node("SolidMask", value=0.5, width=32, height=32),
    "27": node("PrimitiveInt", value=64),
    "28": node("PrimitiveFloat", value=1.5),
    "29": node("PrimitiveString", value="../../escaped"),
    "30": node("PrimitiveBoolean", value=True),
    "31": node("EmptyAudio", duration=0.1, sample_rate=44100, channels=2),
    "32": node("EmptyAudio", duration=0.1, sample_rate=1, channels=1),
}
"""What the core gives to link to, of every kind that our sockets take and some that they do not."""


def whole_graph(picture: str, draw: random.Random) -> Prompt:
    """A small clip, with an Engine Loader or without; and now and then an Engine Builder that has nothing to build."""
    prompt = clip(picture, {CONDITIONING: {"num_frames": 2}, SAMPLER: {"steps": 1, "seed": draw.randrange(3)}})
    if draw.random() < 0.3:
        prompt = with_engines(prompt, backend="eager", on_missing=draw.choice(["eager", "stop"]))
    if draw.random() < 0.1:
        prompt[BUILDER] = builder(backend="eager")
    return {**prompt, **{name: draw_value(source, draw) for name, source in SOURCES.items()}}


def draw_value(source: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """A primitive of the core with another value."""
    values = {
        "PrimitiveInt": lambda: draw.choice([number for number in NUMBERS if isinstance(number, int)]),
        "PrimitiveFloat": lambda: draw.choice([float(number) for number in NUMBERS]),
        "PrimitiveString": lambda: draw.choice([*ODD, *WORDS]),
    }
    make = values.get(source["class_type"])
    return copy.deepcopy(source) if make is None else node(source["class_type"], value=make())


def generated_graph(picture: str, draw: random.Random) -> Prompt:
    """A small clip's graph with one to four things changed."""
    whole = whole_graph(picture, draw)
    prompt = copy.deepcopy(whole)
    for _ in range(draw.choice([1, 1, 1, 2, 2, 3, 4])):
        draw.choice(CHANGES)(prompt, draw)
    spare_the_host(prompt, whole)
    return prompt


def spare_the_host(prompt: Prompt, whole: Prompt) -> None:
    """Takes out what ends ComfyUI's only worker before any node runs.

    That is a link that leads nowhere, in an input that its node does not have: nobody checks those.
    """
    known = {each["class_type"]: set(each["inputs"]) for each in whole.values()}
    for each in prompt.values():
        for name, value in [*each["inputs"].items()]:
            strange = name not in known.get(each["class_type"], ())
            if strange and looks_like_a_link(value) and (value[0] not in prompt or value[1] != 0):
                del each["inputs"][name]


def _ours(prompt: Prompt, draw: random.Random) -> dict[str, Any]:
    names = [name for name, each in prompt.items() if each["class_type"].startswith("I2VTRT_")]
    return prompt[draw.choice(names)]


def _input(prompt: Prompt, draw: random.Random) -> None:
    """Another value in an input of ours, or none, or a link to any node, mostly to a slot that it has."""
    inputs = _ours(prompt, draw)["inputs"]
    name = draw.choice(sorted(inputs))
    kind = draw.choice(["any", "any", "number", "number", "link", "none"])
    if kind == "any":
        inputs[name] = any_json(draw)
    elif kind == "link":
        slot: Any = draw.choice([0, 0, 0, 0, 0, 1, 2, -1, 99, "0", None, 0.5])
        inputs[name] = [draw.choice([*prompt, *SOURCES, "99"]), slot]
    elif kind == "none":
        inputs.pop(name)
    elif numbers := [name for name, value in inputs.items() if isinstance(value, int | float)]:
        inputs[draw.choice(numbers)] = draw.choice(NUMBERS)


def _right_kind(prompt: Prompt, draw: random.Random) -> None:
    """A link that a host lets pass: what comes over it is only known in the run."""
    target, field, sources = draw.choice(
        [
            (CONDITIONING, "image", ("20", "21", PICTURE)),
            *((CONDITIONING, name, ("27",)) for name in ("width", "height", "num_frames", "fps")),
            (CONDITIONING, "prompt", ("29",)),
            *((SAMPLER, name, ("27",)) for name in ("seed", "steps")),
            *((SAMPLER, name, ("28",)) for name in ("guidance_scale", "eta")),
            (DECODE, "latents", ("22", "23", "24", "25")),
            (DECODE, "chunk", ("27",)),
            (SAVE, "frames", ("20", "21", PICTURE)),
            *((SAVE, name, ("28",)) for name in ("fps", "crf")),
            (SAVE, "filename_prefix", ("29",)),
            (SAVE, "pingpong", ("30",)),
            (SAVE, "audio", ("31", "32")),
        ]
    )
    prompt[target]["inputs"][field] = [draw.choice(sources), 0]


def _add(prompt: Prompt, draw: random.Random) -> None:
    name = draw.choice(["cls", "self", "widht", "engine", "hidden", "unique_id", "prompt", "audio", "scheduler", "\0"])
    _ours(prompt, draw)["inputs"][name] = any_json(draw)


def _other_class(prompt: Prompt, draw: random.Random) -> None:
    _ours(prompt, draw)["class_type"] = draw.choice(sorted(each["class_type"] for each in prompt.values()))


def _large(prompt: Prompt, draw: random.Random) -> None:
    """A size that the node takes, and that the machine may not hold."""
    sizes = {name: draw.choice([512, 1024, 2048]) for name in ("width", "height")}
    prompt[CONDITIONING]["inputs"].update(sizes, num_frames=draw.choice([16, 64]))


def _format(prompt: Prompt, draw: random.Random) -> None:
    prompt[SAVE]["inputs"]["format"] = draw.choice(["mkv-ffv1", "webp", "gif", "webm-vp9", "mp4-h265"])
    prompt[SAVE]["inputs"]["crf"] = draw.choice([-1, 0, 30, 51, 63, 100])


CHANGES = (*[_input] * 6, *[_right_kind] * 2, _add, _other_class, _large, _format)


def malformed_request(picture: str, draw: random.Random) -> bytes:
    """The body of a request for a prompt that no client would send."""
    body: dict[str, Any] = {"prompt": generated_graph(picture, draw), "client_id": "x"}
    draw.choice(MALFORMED)(body, draw)
    text = json.dumps(body).encode()
    if draw.random() < 0.2:
        at = draw.randrange(len(text))
        text = draw.choice(
            [text[:at], text[:at] + draw.randbytes(4) + text[at:], b"[" * 50_000, b"", b"null", text * 2]
        )
    return text


def _no_prompt(body: dict[str, Any], draw: random.Random) -> None:
    body["prompt"] = any_json(draw)


def _no_node(body: dict[str, Any], draw: random.Random) -> None:
    body["prompt"][draw.choice(["1", "7", "", "é", "-1"])] = any_json(draw)


def _no_inputs_or_class(body: dict[str, Any], draw: random.Random) -> None:
    each = body["prompt"][draw.choice(sorted(body["prompt"]))]
    each[draw.choice(["inputs", "class_type"])] = any_json(draw)


def _cycle(body: dict[str, Any], draw: random.Random) -> None:
    body["prompt"][CONDITIONING]["inputs"]["model"] = [draw.choice([CONDITIONING, SAMPLER, SAVE]), 0]


def _beside(body: dict[str, Any], draw: random.Random) -> None:
    # Not client_id: ComfyUI itself ends where that is an object or a list.
    name = draw.choice(["prompt_id", "partial_execution_targets", "number", "front", "extra_data"])
    body[name] = any_json(draw)


MALFORMED = (_no_prompt, _no_node, _no_inputs_or_class, _no_inputs_or_class, _cycle, _beside)


def posted(url: str, body: bytes, path: str = "prompt") -> int:
    """The status with which the server answers."""
    request = urllib.request.Request(f"{url}/{path}", body, {"Content-Type": "application/json"})  # noqa: S310
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=60) as response:
            return response.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code
