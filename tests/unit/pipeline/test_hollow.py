"""Configurations alone: networks laid out as those with weights, in no memory, and which folders give them."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from i2v_tensorrt.common.errors import CheckpointError
from i2v_tensorrt.common.spec import PRECISIONS
from i2v_tensorrt.engine_builder.backends.network_tensors import layout_of
from i2v_tensorrt.pipeline.models.base import VideoModel
from i2v_tensorrt.pipeline.models.registry import open_configuration, open_model

from ...fidelity.families import FAMILIES
from ...helpers.refusals import refused
from .conftest import WEIGHTS, sharded

Models = Callable[[str], tuple[VideoModel, VideoModel]]
"""By the family's name: with weights, and its configurations alone."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    @cache
    def opened(name: str) -> tuple[VideoModel, VideoModel]:
        folder = FAMILIES[name].write(tmp_path_factory.mktemp("checkpoints") / name)
        return open_model(folder), open_configuration(folder)

    return opened


def devices(network: torch.nn.Module) -> set[str]:
    return {parameter.device.type for parameter in network.parameters()}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_network_without_weights_is_laid_out_as_with_them_and_takes_no_memory(
    models: Models, name: str, precision: str
) -> None:
    """Its buffers have their values, for these may end up in a graph."""
    for component in models(name)[0].components:
        for rewrites in {(), models(name)[0].known_rewrites.get(component, ())}:
            network, hollow = (model.load(component, precision, rewrites) for model in models(name))
            assert layout_of(hollow) == layout_of(network), (component, rewrites)
            assert devices(hollow) == {"meta"}, (component, rewrites)
            buffers = dict(hollow.named_buffers())
            assert all(torch.equal(buffers[key], value) for key, value in network.named_buffers()), component


@pytest.mark.parametrize("name", FAMILIES)
def test_a_configuration_is_told_from_its_checkpoint_by_the_weights_alone(models: Models, name: str) -> None:
    found, expected = (
        {key: replace(component.spec, weights_sha256="") for key, component in model.components.items()}
        for model in models(name)
    )
    assert found == expected


def test_a_process_that_builds_is_given_the_kind_of_network_that_it_asks_for(tiny_folder: Path) -> None:
    """Both at the same time, of one folder."""
    source = open_model(tiny_folder).source("vae_encoder", "fp32")
    hollow, network = source.load(hollow=True), source.load()
    assert (devices(hollow), devices(network)) == ({"meta"}, {"cpu"})
    assert source.has_weights
    assert not open_configuration(tiny_folder).source("vae_encoder", "fp32").has_weights


# Folders.


def take_weights(folder: Path) -> None:
    for path in folder.rglob("*.safetensors"):
        path.unlink()


def test_a_folder_without_weights_is_refused_unless_none_are_needed(folder: Path) -> None:
    take_weights(folder)
    with refused(CheckpointError, r"Expected the file .*\.safetensors, found nothing there", most=600):
        open_model(folder)
    model = open_model(folder, needs_weights=False)
    assert not model.checkpoint.has_weights
    assert devices(model.load("core", "fp16")) == {"meta"}


@pytest.mark.parametrize("part", WEIGHTS)
def test_a_folder_with_the_weights_of_some_parts_is_refused(folder: Path, part: str) -> None:
    (folder / WEIGHTS[part]).unlink()
    for open_it in (open_model, open_configuration, lambda folder: open_model(folder, needs_weights=False)):
        with refused(CheckpointError, f"Expected the file .*{part}.*, found nothing there", most=600):
            open_it(folder)


@pytest.mark.parametrize("variant", ["", "fp16"])
def test_an_index_without_any_shard_is_refused_with_the_shards_name_unless_none_are_needed(
    folder: Path, variant: str
) -> None:
    indexes = [sharded(folder, part, variant).name for part in WEIGHTS]
    take_weights(folder)
    with refused(CheckpointError, "lists .*-00001-of-00002.safetensors, expected that file", most=600) as error:
        open_model(folder)
    assert any(index in str(error.value) for index in indexes)
    assert devices(open_model(folder, needs_weights=False).load("core", "fp32")) == {"meta"}


def test_a_pickle_is_no_configuration_alone(folder: Path) -> None:
    take_weights(folder)
    shutil.copy(folder / "unet/config.json", folder / "unet/diffusion_pytorch_model.bin")
    with refused(CheckpointError, "is a pickle", most=600):
        open_model(folder, needs_weights=False)
