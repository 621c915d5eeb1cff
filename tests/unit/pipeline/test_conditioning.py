"""A request is checked, encoded once, and found again by its content alone."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from i2v_tensorrt.common.errors import InputError
from i2v_tensorrt.pipeline import conditioning as module
from i2v_tensorrt.pipeline.conditioning import (
    MAX_FPS,
    MAX_FRAMES,
    MAX_PROMPT_CHARS,
    MAX_SIDE,
    Conditioning,
    check_fields,
    condition,
    conditioning_key,
)
from i2v_tensorrt.pipeline.dummies.i2vgen_xl import write_tiny_checkpoint
from i2v_tensorrt.pipeline.models.i2vgen_xl.model import I2VGenXL
from i2v_tensorrt.pipeline.request import ClipRequest
from i2v_tensorrt.pipeline.tensor_cache import ConditioningCache

from ...helpers.refusals import refused
from .conftest import Networks, assert_taken_by_the_core

ENCODERS = ["image_encoder", "vae_encoder", "text_encoder", "conditioner"]


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> I2VGenXL:
    return I2VGenXL.open(tiny_folder)


@pytest.fixture(scope="module")
def modules(model: I2VGenXL) -> dict[str, torch.nn.Module]:
    return {name: model.load(name, "fp32") for name in ENCODERS}


@pytest.fixture
def networks(model: I2VGenXL, modules: dict[str, torch.nn.Module]) -> Networks:
    return Networks(model, modules)


def picture(level: int = 90, size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.new("RGB", size, (level, 20, 30))


REQUEST = ClipRequest(picture(), "a boat", "blurry", 64, 72, 3, 8)


def conditioned(
    networks: Networks, request: ClipRequest = REQUEST, cache: ConditioningCache | None = None
) -> Conditioning:
    return condition(networks.model, request, "fp32", networks, cache or ConditioningCache(None), lambda *_: None)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        *(("width", value, "Width is a multiple of 8") for value in (65, 2047)),
        *(
            ("width", value, f"found {value}: the nearest is {nearest}")
            for value, nearest in ((65, 64), (71, 72), (1023, 1024))
        ),
        *(("height", value, "Height is a multiple of 8") for value in (100, 511)),
        *(
            (name, value, f"{name.capitalize()} is a whole number from 64 to {MAX_SIDE}")
            for name in ("width", "height")
            for value in (0, -64, 56, MAX_SIDE + 8, 1 << 70, True, 64.0, float("nan"), float("inf"), "64", None, [64])
        ),
        *(("num_frames", value, f"from 1 to {MAX_FRAMES}") for value in (0, -1, MAX_FRAMES + 1, 1.5, False)),
        *(("fps", value, f"from 1 to {MAX_FPS}") for value in (0, -8, MAX_FPS + 1, 8.0, float("nan"))),
        *(("prompt", value, "The prompt is a text") for value in (None, 7, b"boat", ["boat"])),
        ("negative_prompt", 7, "The negative prompt is a text"),
        (
            "prompt",
            "x" * (MAX_PROMPT_CHARS + 1),
            f"at most {MAX_PROMPT_CHARS} characters, found {MAX_PROMPT_CHARS + 1}",
        ),
    ],
    ids=lambda value: str(value)[:20],
)
def test_fields_that_cannot_be_served(name: str, value: object, words: str) -> None:
    with refused(InputError, words, 200):
        check_fields({name: value})


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"width": 64, "height": MAX_SIDE, "num_frames": 1, "fps": MAX_FPS},
        {"num_frames": MAX_FRAMES, "fps": 1},
        {"prompt": "", "negative_prompt": "x" * 10_000},
    ],
)
def test_fields_that_can_be_served(fields: dict[str, object]) -> None:
    check_fields(fields)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16"])
def test_a_request_takes_rgb_alone_and_a_refused_one_encodes_nothing(networks: Networks, mode: str) -> None:
    other = Image.new(mode, (8, 8))
    for changes, words in (({"picture": other}, f"RGB.*found {mode}"), ({"width": 65}, "Width")):
        with refused(InputError, words, 200):
            conditioned(networks, replace(REQUEST, **changes))
    assert networks.ran == []


def test_what_comes_out(networks: Networks) -> None:
    found = conditioned(networks)
    assert (found.family, found.width, found.height, found.num_frames, found.fps) == ("i2vgen_xl", 64, 72, 3, 8)
    assert (found.place, found.notes) == ("encoded", ()) and found.encode_s > 0
    assert networks.ran == ENCODERS
    assert set(found.tensors) == {"image_cond", "fps_emb", "context"}
    sizes = {"batch": 2, "frames": 3, "latent_height": 9, "latent_width": 8}
    assert_taken_by_the_core(networks.model, found.tensors, sizes)


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (300, 7), (64, 72)])
@pytest.mark.parametrize("num_frames", [1, 2])
def test_any_picture_and_any_number_of_frames(networks: Networks, size: tuple[int, int], num_frames: int) -> None:
    found = conditioned(networks, replace(REQUEST, picture=picture(size=size), num_frames=num_frames))
    assert found.tensors["image_cond"].shape == (1, 4, num_frames, 9, 8)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt": "", "negative_prompt": ""}, []),
        ({"prompt": "a" * 75}, []),
        ({"prompt": "a" * 76}, ["The prompt has 78 tokens: only the first 77 count."]),
        ({"prompt": "b" * 10_000}, ["The prompt has 10002 tokens: only the first 77 count."]),
        ({"negative_prompt": "c " * 5_000}, ["The negative prompt has 5002 tokens: only the first 77 count."]),
        ({"prompt": "火 \x00 \ud7ff ñ"}, []),
    ],
    ids=["empty", "full", "one_too_many", "long", "long_negative", "unicode"],
)
def test_notes_say_what_was_cut(networks: Networks, changes: dict[str, str], words: list[str]) -> None:
    found = conditioned(networks, replace(REQUEST, **changes))
    assert list(found.notes) == words
    assert bool(torch.isfinite(found.tensors["context"]).all())


def test_what_is_cut_off_does_not_count(networks: Networks) -> None:
    one, other = (conditioned(networks, replace(REQUEST, prompt="a" * 80 + end)) for end in "xy")
    assert torch.equal(one.tensors["context"], other.tensors["context"])


def test_branches_hold_the_negative_and_the_positive_prompt(networks: Networks) -> None:
    base = conditioned(networks).tensors["context"]
    for branch, changes in enumerate(({"negative_prompt": "sharp"}, {"prompt": "a train"})):
        moved = (conditioned(networks, replace(REQUEST, **changes)).tensors["context"] - base).abs().amax((1, 2))
        assert moved[branch] > 1e-3 and moved[1 - branch] == 0


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"fps": 9}, "fps_emb"),
        ({"picture": picture(91)}, "image_cond"),
        ({"picture": picture(91)}, "context"),
        ({"num_frames": 4}, "image_cond"),
    ],
)
def test_every_ingredient_reaches_the_tensors(networks: Networks, changes: dict[str, object], name: str) -> None:
    before, after = (conditioned(networks, request).tensors[name] for request in (REQUEST, replace(REQUEST, **changes)))
    assert before.shape != after.shape or (before - after).abs().max() > 1e-5


CHANGES: list[dict[str, object]] = [
    {"prompt": "a boat "},
    {"negative_prompt": "blurry."},
    {"prompt": "blurry", "negative_prompt": "a boat"},
    {"width": 72},
    {"height": 64},
    {"width": 72, "height": 64},
    {"num_frames": 4},
    {"fps": 9},
    {"num_frames": 8, "fps": 3},
    {"picture": picture(91)},
    {"picture": picture(size=(30, 40))},
    {"picture": picture(size=(60, 20))},
]


def test_the_key_changes_with_each_ingredient_the_model_and_the_meaning_of_an_entry(
    model: I2VGenXL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [REQUEST, *(replace(REQUEST, **changes) for changes in CHANGES)]
    keys = [conditioning_key(model, request, "fp32") for request in requests]
    keys += [conditioning_key(model, REQUEST, precision) for precision in ("fp16", "bf16")]
    other = I2VGenXL.open(write_tiny_checkpoint(tmp_path / "other", seed=1))
    keys.append(conditioning_key(other, REQUEST, "fp32"))
    monkeypatch.setattr(module, "SCHEMA", module.SCHEMA + 1)
    keys.append(conditioning_key(model, REQUEST, "fp32"))
    assert len(set(keys)) == len(keys)
    assert all(len(key) == 64 and set(key) <= set("0123456789abcdef") for key in keys)


def test_the_key_changes_with_nothing_else(tiny_folder: Path, tmp_path: Path, model: I2VGenXL) -> None:
    remarks = PngInfo()
    remarks.add_text("workflow", "another one")
    REQUEST.picture.save(tmp_path / "same.png", pnginfo=remarks, compress_level=0)
    request = replace(REQUEST, picture=Image.open(tmp_path / "same.png"))
    copy = write_tiny_checkpoint(tmp_path / "the same elsewhere")
    assert conditioning_key(I2VGenXL.open(copy), request, "fp32") == conditioning_key(model, REQUEST, "fp32")


@pytest.mark.parametrize("prompt", ["a boat", "x" * 10_000])
def test_a_hit_encodes_nothing_and_another_request_does(networks: Networks, tmp_path: Path, prompt: str) -> None:
    cache, request = ConditioningCache(tmp_path), replace(REQUEST, prompt=prompt)
    first = conditioned(networks, request, cache)
    second = conditioned(networks, request, cache)
    third = conditioned(networks, request, ConditioningCache(tmp_path))
    assert networks.ran == ENCODERS
    assert [found.place for found in (first, second, third)] == ["encoded", "memory", "disk"]
    assert ["10002 tokens" in note for note in first.notes] == [True] * (len(prompt) > 100)
    for found in (second, third):
        assert (found.encode_s, found.notes) == (first.encode_s, first.notes)
        assert all(torch.equal(found.tensors[name], first.tensors[name]) for name in first.tensors)
    for number, changes in enumerate(({"picture": picture(91)}, {"prompt": "a train"}, {"fps": 9}), start=2):
        assert conditioned(networks, replace(request, **changes), cache).place == "encoded"
        assert networks.ran == ENCODERS * number


def test_a_damaged_entry_is_encoded_again(networks: Networks, tmp_path: Path) -> None:
    first = conditioned(networks, cache=ConditioningCache(tmp_path))
    [path] = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    again = conditioned(networks, cache=ConditioningCache(tmp_path))
    assert again.place == "encoded"
    assert torch.equal(again.tensors["context"], first.tensors["context"])


def test_stages_are_told_in_order_and_count_up(networks: Networks) -> None:
    told: list[tuple[str, int, int]] = []
    condition(networks.model, REQUEST, "fp32", networks, ConditioningCache(None), lambda *stage: told.append(stage))
    assert [(done, total) for _, done, total in told] == [(done, 4) for done in range(5)]
    assert [name for name, _, _ in told[:3]] == ["encode picture", "encode latents", "encode text"]


@pytest.mark.parametrize("at", range(5))
def test_an_interruption_between_stages_leaves_nothing_behind(networks: Networks, tmp_path: Path, at: int) -> None:
    def stop(name: str, done: int, total: int) -> None:
        if done == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        condition(networks.model, REQUEST, "fp32", networks, ConditioningCache(tmp_path), stop)
    assert networks.ran == ENCODERS[:at]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("broken", ENCODERS)
def test_values_that_are_not_finite_are_neither_used_nor_kept(networks: Networks, tmp_path: Path, broken: str) -> None:
    def run(component: str, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        outputs = networks(component, inputs)
        return {name: out + torch.nan if component == broken else out for name, out in outputs.items()}

    with refused(InputError, "not finite", 200):
        condition(networks.model, REQUEST, "fp32", run, ConditioningCache(tmp_path), lambda *_: None)
    assert list(tmp_path.iterdir()) == []
