"""Sound of any kind: what can be heard goes into the file, and what cannot is told and stops nothing."""

import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import av
import pytest
import torch

from i2v_tensorrt.pipeline.media.formats import VideoOptions
from i2v_tensorrt.pipeline.media.sound import check_audio, usable_sound
from i2v_tensorrt.pipeline.media.video import write_video

SINE = torch.sin(torch.arange(8000) / 10)


def audio(waveform: object, sample_rate: object = 8000) -> dict[str, object]:
    """A ComfyUI AUDIO."""
    return {"waveform": waveform, "sample_rate": sample_rate}


@pytest.mark.parametrize("channels", [1, 2, 6, 8])
def test_what_players_know_is_taken_as_it_is(channels: int) -> None:
    waveform = SINE.expand(1, channels, -1)
    sound, notes = usable_sound(audio(waveform))
    assert sound is not None and torch.equal(sound.waveform, waveform[0])
    assert (sound.sample_rate, notes) == (8000, ())


def test_no_sound_is_nothing_to_tell() -> None:
    assert usable_sound(None) == (None, ())


@pytest.mark.parametrize("channels", [3, 4, 5, 7, 11])
def test_channels_without_a_layout_are_mixed_into_one(channels: int) -> None:
    sound, notes = usable_sound(audio(torch.stack([SINE] * channels)[None]))
    assert sound is not None and torch.allclose(sound.waveform, SINE[None], atol=1e-6)
    assert notes == (f"The sound's {channels} channels were mixed into one.",)


@pytest.mark.parametrize(
    ("dtype", "loud", "quiet"),
    [
        (torch.int16, 16384, 0),
        (torch.int32, 1 << 30, 0),
        (torch.int8, 64, 0),
        (torch.uint8, 192, 128),
        (torch.float16, 0.5, 0),
        (torch.bfloat16, 0.5, 0),
        (torch.float64, 0.5, 0),
    ],
)
def test_numbers_count_by_their_types_full_scale(dtype: torch.dtype, loud: float, quiet: float) -> None:
    sound, notes = usable_sound(audio(torch.tensor([[[loud, quiet]]], dtype=dtype)))
    assert sound is not None and sound.waveform.tolist() == [[0.5, 0.0]]
    assert sound.waveform.dtype == torch.float32 and notes == ()


def test_nan_is_silence_and_infinity_the_loudest() -> None:
    sound, notes = usable_sound(audio(torch.tensor([[[float("nan"), float("inf"), float("-inf"), 0.25]]])))
    assert sound is not None and sound.waveform.tolist() == [[0.0, 1.0, -1.0, 0.25]]
    assert len(notes) == 1 and notes[0].startswith("NaN in the sound")


def test_the_first_of_a_batch_is_taken() -> None:
    sound, notes = usable_sound(audio(torch.stack([SINE[None], -SINE[None]])))
    assert sound is not None and torch.equal(sound.waveform, SINE[None])
    assert notes == ("The first of 2 sounds was taken.",)


@pytest.mark.parametrize(("shape", "expected"), [((8000,), (1, 8000)), ((2, 4000), (2, 4000))])
def test_a_waveform_without_a_batch_is_one_sound(shape: tuple[int, ...], expected: tuple[int, int]) -> None:
    sound, notes = usable_sound(audio(SINE.reshape(shape)))
    assert sound is not None and sound.waveform.shape == expected
    assert notes == ()


class Unreadable(Mapping[str, object]):
    """AUDIO that reads its file when it is asked, as other packs have it, and finds none."""

    def __getitem__(self, key: str) -> object:
        raise OSError("no sound in the file")

    def __iter__(self) -> Iterator[str]:
        return iter(("waveform", "sample_rate"))

    def __len__(self) -> int:
        return 2

    def __repr__(self) -> str:  # the name of a test is the same in every process
        return "Unreadable()"


@pytest.mark.parametrize(
    ("found", "word"),
    [
        (audio(torch.zeros(1, 2, 0)), "it is empty, of shape [1, 2, 0]"),
        (audio(torch.zeros(0, 2, 9)), "it is empty"),
        (audio(torch.zeros(1, 0, 9)), "it is empty"),
        (audio(torch.tensor(1.0)), "found one of shape []"),
        (audio(torch.zeros(1, 1, 2, 9)), "found one of shape [1, 1, 2, 9]"),
        (audio(None), "found NoneType"),
        (audio([[0.0]]), "found list"),
        (audio(torch.zeros(1, 1, 9, dtype=torch.complex64)), "torch.complex64"),
        (audio(torch.zeros(1, 1, 9, dtype=torch.bool)), "torch.bool"),
        (audio(SINE, 0), "from 1000 to 655350 Hz, but it is 0"),
        (audio(SINE, float("nan")), "found nan"),
        (audio(SINE, "44100"), "found '44100'"),
        (audio(SINE, None), "found None"),
        ({}, "found NoneType"),
        (5, "found a int"),
        (Unreadable(), "because it cannot be read: OSError"),
    ],
)
def test_sound_of_no_use_is_left_out_with_the_reason(found: Any, word: str) -> None:
    sound, notes = usable_sound(found)
    assert sound is None
    assert len(notes) == 1 and notes[0].startswith("The sound was left out") and word in notes[0]


def generated(count: int) -> Iterator[dict[str, object]]:
    """AUDIO of odd shapes, types, rates and contents, the same in every run."""
    dice = random.Random(22)  # noqa: S311 - no secret
    kinds = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int16, torch.int32, torch.uint8]
    for _ in range(count):
        shape = [dice.choice([0, 1, 1, 1, 2]), dice.choice([0, 1, 1, 2, 2, 3, 4, 5, 6, 7, 8, 9]), 0]
        shape[2] = dice.choice([0, 1, 2, 3, 100, 1023, 1024, 1025, 4000])
        waveform = (torch.rand(shape, generator=torch.Generator().manual_seed(dice.getrandbits(32))) * 2 - 1).to(
            dice.choice(kinds)
        )
        if waveform.is_floating_point() and dice.random() < 0.3:
            waveform.view(-1)[::7] = dice.choice([float("nan"), float("inf"), 1e30 if waveform.itemsize > 2 else 9.0])
        rate = dice.choice([0, 999, 1000, 7350, 8000, 22050, 44100, 44100.0, 47999, 96000, 655350, 10**9, float("nan")])
        yield audio(waveform[dice.choice([0, ..., ...])] if shape[0] else waveform, rate)


@pytest.mark.parametrize("key", ["mp4-h264", "webm-vp9", "mkv-ffv1"])
def test_generated_sounds_lose_no_video(tmp_path: Path, key: str) -> None:
    frames = torch.rand(3, 16, 16, 3, generator=torch.Generator().manual_seed(0))
    with_sound = 0
    for number, found in enumerate(generated(200)):
        sound, notes = usable_sound(found)
        assert (sound is not None) or len(notes) == 1
        if sound is None:
            continue
        check_audio(sound)
        options = VideoOptions(key, 8)
        info = write_video(frames, tmp_path / f"{number}{options.spec.suffix}", options, audio=sound)
        with av.open(info.path) as video:
            assert sum(1 for _ in video.decode(video=0)) == 3
            with_sound += bool(video.streams.audio)
    assert with_sound > 30
