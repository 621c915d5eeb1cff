"""Checks of numbers from a workflow, where a widget may hold any JSON."""

from __future__ import annotations

import math

from .errors import InputError


def check_number(subject: str, value: object, least: float, most: float) -> None:
    """Raises InputError unless `value` is a finite number (no bool) from `least` to `most`; `subject` as `Eta is`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not _lies_within(value, least, most):
        raise InputError(f"{subject} a number from {least:g} to {most:g}, found {shown(value)}.")


def _lies_within(value: float, least: float, most: float) -> bool:
    return least <= value <= most and math.isfinite(value)


def shown(value: object) -> str:
    """A value from outside as text in a sentence: on one line, and cut where it is long."""
    return (str if isinstance(value, int | float) else repr)(value)[:80]
