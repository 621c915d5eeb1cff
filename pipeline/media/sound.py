"""Sound as other nodes hand it over, as sound that a video file can hold."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...common.errors import InputError
from .container import AUDIO_LAYOUTS
from .formats import Audio

log = logging.getLogger(__name__)

MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 1000, 655_350


def usable_sound(audio: object) -> tuple[Audio | None, tuple[str, ...]]:
    """The sound of a ComfyUI AUDIO, and sentences on what of it was left out or changed.

    Nothing raises: a clip is worth more than its sound. `audio` is a mapping with `waveform`, [batch, channels,
    samples], and `sample_rate` in hertz; integers count as their type's full scale, channels that no layout fits are
    mixed into one. None without sound that can be used.
    """
    if audio is None:
        return None, ()
    try:
        return _usable(audio)
    except InputError as error:
        return None, (f"The sound was left out: {error}",)
    except Exception as error:  # some packs read a file as it is asked for, and that may fail in any way
        log.debug("sound left out", exc_info=True)
        return None, (f"The sound was left out, because it cannot be read: {type(error).__name__}.",)


def check_audio(audio: Audio) -> None:
    """Raises InputError unless `audio` is finite [channels, samples] with a layout that players know."""
    waveform, rate = audio.waveform, audio.sample_rate
    if waveform.ndim != 2 or not waveform.is_floating_point() or waveform.shape[1] == 0:
        raise InputError(
            "Audio must be floating point [channels, samples] with at least one sample, "
            f"but it is {waveform.dtype} {list(waveform.shape)}."
        )
    if waveform.shape[0] not in AUDIO_LAYOUTS:
        known = ", ".join(map(str, AUDIO_LAYOUTS))
        raise InputError(f"Audio must have one of {known} channels, but it has {waveform.shape[0]}.")
    if not MIN_SAMPLE_RATE <= rate <= MAX_SAMPLE_RATE:
        raise InputError(f"The sample rate must be from {MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE} Hz, but it is {rate}.")
    if not torch.isfinite(waveform).all():
        raise InputError("Audio must hold finite values, but it holds NaN or infinity.")


def _usable(audio: object) -> tuple[Audio, tuple[str, ...]]:
    """As `usable_sound`; raises InputError for sound of no use."""
    if not isinstance(audio, Mapping):
        raise InputError(f"expected a waveform and a sample rate, found a {type(audio).__name__}.")
    notes: list[str] = []
    waveform = _channels(audio.get("waveform"), notes)
    if not torch.isfinite(waveform).all():
        waveform = torch.nan_to_num(waveform, nan=0.0, posinf=1.0, neginf=-1.0)
        notes.append("NaN in the sound was made silence, and infinity the loudest that there is.")
    sound = Audio(waveform, _rate(audio.get("sample_rate")))
    check_audio(sound)
    return sound, tuple(notes)


def _channels(waveform: Any, notes: list[str]) -> Tensor:
    """The first sound of a batch, float32 [channels, samples]."""
    if not isinstance(waveform, Tensor) or not 1 <= waveform.ndim <= 3:
        found = f"one of shape {list(waveform.shape)}" if isinstance(waveform, Tensor) else type(waveform).__name__
        raise InputError(f"expected a waveform [batch, channels, samples], found {found}.")
    if 0 in waveform.shape:
        raise InputError(f"it is empty, of shape {list(waveform.shape)}.")
    if waveform.ndim == 3:
        if len(waveform) > 1:
            notes.append(f"The first of {len(waveform)} sounds was taken.")
        waveform = waveform[0]
    samples = _floats(waveform.detach()).reshape(-1, waveform.shape[-1])
    if len(samples) not in AUDIO_LAYOUTS:
        notes.append(f"The sound's {len(samples)} channels were mixed into one.")
        samples = samples.mean(0, keepdim=True)
    return samples


def _floats(waveform: Tensor) -> Tensor:
    """float32 from -1 to 1; an integer's full scale is 1, and an unsigned one's silence is its middle."""
    if waveform.is_floating_point():
        return waveform.float()
    if waveform.is_complex() or waveform.dtype == torch.bool:
        raise InputError(f"expected a waveform of floats or integers, found {waveform.dtype}.")
    limits = torch.iinfo(waveform.dtype)
    middle = (limits.max + 1) / 2 if limits.min == 0 else 0.0
    return ((waveform.double() - middle) / (limits.max + 1 - middle)).float()


def _rate(rate: Any) -> int:
    """A sample rate in hertz as a whole number."""
    value = rate.item() if isinstance(rate, Tensor) and rate.numel() == 1 else rate
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"expected a sample rate in hertz, found {value!r:.40}.")
    return int(value)
