"""One engine of a block over a part of the tokens serves any number of processes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from i2v_tensorrt.common.errors import InputError
from i2v_tensorrt.engine_builder.build.build_process import BuildProcess
from i2v_tensorrt.engine_builder.graph.onnx_export import example_inputs
from i2v_tensorrt.engine_builder.store.store import EngineStore
from i2v_tensorrt.pipeline.models.registry import open_model
from i2v_tensorrt.pipeline.models.wan.sliced import SLICED, Ranks, among
from i2v_tensorrt.runtime.devices.sliced_networks import SlicedNetworks
from i2v_tensorrt.runtime.engines.engine_set import Engines, EngineSet
from i2v_tensorrt.runtime.engines.policy import EnginePolicy

from ...helpers.ranks import Meeting, together
from ...helpers.toys import CPU

SIZES = {"batch": 1, "frames": 3, "latent_height": 6, "latent_width": 10}


def engines_over(folder: Path, store: Path, shapes: str) -> Engines[SlicedNetworks]:
    policy = EnginePolicy(backend="inductor", shapes=shapes)
    return Engines(SlicedNetworks.of(open_model(folder)), EngineStore(store), policy, CPU)


def test_other_families_are_refused(tiny_folder: Path) -> None:
    with pytest.raises(InputError, match="Wan's clips are shared by their tokens, found I2VGen-XL"):
        SlicedNetworks.of(open_model(tiny_folder))


def test_engines_of_whole_networks_keep_their_names(tiny_wan: Callable[[str], Path], tmp_path: Path) -> None:
    model = open_model(tiny_wan("wan21"))
    mine = engines_over(tiny_wan("wan21"), tmp_path, "exact").catalog.request("core", SIZES).spec
    whole = EngineSet(model, EngineStore(tmp_path), EnginePolicy("inductor", shapes="exact"), CPU)
    its = whole.catalog.request("core", SIZES).spec
    assert SLICED in mine.rewrites
    assert SLICED not in its.rewrites
    assert mine.network.code != its.network.code


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "batch"), [("wan21", 1), ("ti2v", 2)])
def test_an_engine_serves_any_number_of_processes(
    tiny_wan: Callable[[str], Path], tmp_path: Path, kind: str, batch: int
) -> None:
    engines, sizes = engines_over(tiny_wan(kind), tmp_path, "exact"), {**SIZES, "batch": batch}
    with BuildProcess() as process:
        built = engines.build("core", sizes, process).plan.manifest
    assert built.verdict is not None
    spec = built.spec
    inputs = example_inputs(spec, sizes, seed=3)
    with torch.no_grad():
        expected = engines.model.model.load("core", "fp32")(**inputs)
    for count in (1, 2, 4):
        meeting = Meeting(count)

        def run(rank: int, count: int = count, meeting: Meeting = meeting) -> torch.Tensor:
            own = engines_over(tiny_wan(kind), tmp_path, "exact")
            with among(Ranks(rank, count, meeting.gather(rank))):
                found = own.run("core", inputs)["prediction"]
            assert own.describe("core") == "inductor, fp32 on cpu"
            return found

        for found in together(run, count):
            assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
