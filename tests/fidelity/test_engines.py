"""The networks of every family through the backends: eager PyTorch's result at sizes that no export has traced.

I2VGen-XL's are tested backend by backend in `tests/unit/engine_builder`, Wan's VAE in `test_wan_vae_engines.py`.
"""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from i2v_tensorrt.common.spec import EngineSpec
from i2v_tensorrt.engine_builder.backends.base import INSIDE, OUTSIDE
from i2v_tensorrt.engine_builder.backends.tensorrt.backend import OPSET, TensorRTBackend, compile_graph
from i2v_tensorrt.engine_builder.backends.tensorrt.library import PLAN, load_library
from i2v_tensorrt.engine_builder.build.build import build_engine, quiet
from i2v_tensorrt.engine_builder.build.build_process import BuildProcess
from i2v_tensorrt.engine_builder.build.compile import BuildRequest
from i2v_tensorrt.engine_builder.graph.onnx_export import export_onnx
from i2v_tensorrt.engine_builder.store.store import EngineStore
from i2v_tensorrt.pipeline.dummies.wan import TinyWanSizes, write_tiny_wan
from i2v_tensorrt.pipeline.models.base import VideoModel
from i2v_tensorrt.pipeline.models.registry import open_configuration, open_model
from i2v_tensorrt.pipeline.models.wan.model import Wan21
from i2v_tensorrt.pipeline.models.wan.wan22 import WanTI2V
from i2v_tensorrt.runtime.clip_sizes import clip_sizes

from ..helpers.agreement import (
    Pair,
    assert_aotinductor_agrees,
    assert_inputs_move_their_branch_alone,
    assert_untraced_sizes_agree,
    onnxruntime_pair,
)
from ..helpers.toys import CPU
from .families import FAMILIES, each

Open = Callable[[str], VideoModel]
LoadPair = Callable[[str, str], Pair]
"""By family and component."""
WAN_VAES = {"wan21": Wan21, "ti2v": WanTI2V}


def is_denoiser(component: str) -> bool:
    return component.startswith("core")


WIDEST = ("dynamicrafter", "core")
"""A network whose plans take minutes; its layers are those of the others."""


RARE = (("a14b", "core_late"), ("tooncrafter", "vae_decoder"), WIDEST)
"""Networks that are left to the full counts: the second expert is the network of the first, and two take minutes."""


def rarely(name: str, component: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.torture] if (name, component) in RARE else []


def each_engine(denoisers: bool = True, others: bool = True) -> list[tuple[str, str]]:
    return [row for row in each(lambda family: family.engines) if (denoisers if is_denoiser(row[1]) else others)]


def each_target() -> list[Any]:
    """The networks that are built for other GPUs: each of every family, once where families share it."""
    vaes = [(name, each) for name, kind in WAN_VAES.items() for each in kind.engine_components if "vae" in each]
    found = [*each(lambda family: family.targets), ("wan21", "text_encoder"), ("a14b", "core"), *vaes]
    return [pytest.param(*row, marks=[pytest.mark.torture] if row == WIDEST else []) for row in found]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Open:
    return cache(lambda name: open_model(FAMILIES[name].wide(tmp_path_factory.mktemp("checkpoints") / name)))


@pytest.fixture(scope="module")
def pair(model: Open, tmp_path_factory: pytest.TempPathFactory) -> LoadPair:
    store = EngineStore(tmp_path_factory.mktemp("engines"))
    return cache(lambda name, component: onnxruntime_pair(model(name), component, store))


@pytest.fixture(scope="module")
def process() -> Iterator[BuildProcess]:
    with BuildProcess() as running:
        yield running


@pytest.mark.parametrize(
    ("name", "component"),
    [
        *(pytest.param(*row, marks=rarely(*row)) for row in each_engine(denoisers=False)),
        *(pytest.param(*row, marks=[pytest.mark.slow, *rarely(*row)]) for row in each_engine(others=False)),
    ],
)
def test_onnxruntime_gives_eager_pytorchs_result_at_sizes_that_were_not_traced(
    pair: LoadPair, name: str, component: str
) -> None:
    assert_untraced_sizes_agree(pair(name, component), FAMILIES[name].engines[component])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "component"), each_engine(others=False))
def test_every_input_of_a_denoisers_engine_moves_its_output_in_its_branch_alone(
    pair: LoadPair, name: str, component: str
) -> None:
    assert_inputs_move_their_branch_alone(pair(name, component)[1], FAMILIES[name].moved)


@pytest.mark.torture
@pytest.mark.parametrize("shapes", ["exact", "range"])
@pytest.mark.parametrize(("name", "component"), [row for row in each_engine() if row[1] != "vae_encoder"])
def test_aotinductor_gives_eager_pytorchs_result(
    model: Open, tmp_path: Path, name: str, component: str, shapes: str
) -> None:
    assert_aotinductor_agrees(
        model(name), component, shapes, FAMILIES[name].small, FAMILIES[name].engines[component], tmp_path
    )


def spec_of(model: VideoModel, component: str, precision: str, shapes: str, place: str = INSIDE) -> EngineSpec:
    """The specification of an engine by TensorRT for a small clip, or for every size."""
    network = TensorRTBackend.network_of(model.components[component].spec, place)
    sizes = clip_sizes(model, 64, 64, max(model.latent.num_frames(3), model.latent.min_frames))
    exact = network.limits.exact({name: size for name, size in sizes.items() if name in network.limits.ranges})
    return EngineSpec(network, exact if shapes == "exact" else network.limits, precision)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "place"),
    [
        ("fp16", OUTSIDE),
        ("bf16", INSIDE),
        *(pytest.param(*row, marks=pytest.mark.torture) for row in (("fp16", INSIDE), ("bf16", OUTSIDE))),
    ],
)
@pytest.mark.parametrize(("name", "component"), each_target())
def test_tensorrt_rtx_builds_for_gpus_that_are_not_here(
    wide: Open, tmp_path: Path, name: str, component: str, precision: str, place: str
) -> None:
    rtx = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx has no build for this platform")
    spec = spec_of(wide(name), component, precision, "exact", place)
    hollow = open_configuration(wide(name).checkpoint.folder) if place == OUTSIDE else wide(name)
    graph = export_onnx(hollow.load(component, precision), spec, tmp_path, OPSET)
    library, found = load_library(rtx.__name__), {}
    for arch in ("sm_86", "sm_89", "sm_120"):
        built = compile_graph(library, graph, spec, arch, quiet, tmp_path / "timings", streams=False)
        found[arch] = bytes(built.plan)
        assert len(found[arch]) > 100_000
    assert len(set(found.values())) == len(found), "the library aimed them"


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "shapes"), [("bf16", "range"), ("fp32", "exact")])
def test_tensorrt_rtx_survives_narrow_heads_and_dynamic_sizes(
    process: BuildProcess, tmp_path: Path, precision: str, shapes: str
) -> None:
    """As one Attention of the next opset, these very networks end it by a segmentation fault."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx has no build for this platform")
    model = open_model(write_tiny_wan(tmp_path / "narrow", "wan21", TinyWanSizes(head_dim=8, layers=1)))
    spec = spec_of(model, "core", precision, shapes)
    request = BuildRequest(spec, model.source("core", precision), TensorRTBackend(), CPU, "sm_89")
    assert set(build_engine(request, EngineStore(tmp_path), process).plan.manifest.files) == {PLAN}
