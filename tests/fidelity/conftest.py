"""A tiny checkpoint of each family, written once for all tests of this folder."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from i2v_tensorrt.pipeline.models.base import VideoModel
from i2v_tensorrt.pipeline.models.registry import open_model

from .families import FAMILIES


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The checkpoint's folder by the family's name; read it, never change it."""
    return cache(lambda name: FAMILIES[name].write(tmp_path_factory.mktemp("checkpoints") / name))


@pytest.fixture(scope="module")
def model(folder: Callable[[str], Path]) -> Callable[[str], VideoModel]:
    """The model by the family's name."""
    return cache(lambda name: open_model(folder(name)))
