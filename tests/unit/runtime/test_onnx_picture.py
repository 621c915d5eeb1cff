"""ONNX files through engines: the same picture as ONNX Runtime gives, keys that follow the file, backends that fit."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from i2v_tensorrt.common.errors import InputError
from i2v_tensorrt.common.spec import EngineSpec
from i2v_tensorrt.engine_builder.backends.tensorrt.backend import TensorRTBackend
from i2v_tensorrt.engine_builder.backends.tensorrt.library import PLAN
from i2v_tensorrt.engine_builder.build.build import quiet
from i2v_tensorrt.engine_builder.store.store import EngineStore
from i2v_tensorrt.pipeline.pictures.find_contract import find_contract
from i2v_tensorrt.pipeline.pictures.picture_filter import Wishes
from i2v_tensorrt.runtime.engines.engine_set import Engines
from i2v_tensorrt.runtime.engines.policy import EnginePolicy
from i2v_tensorrt.runtime.filters.onnx_picture import (
    NETWORK,
    OnnxPictureNetworks,
    backend_for,
    picture_filter,
    served_by,
)
from i2v_tensorrt.tests.helpers.onnx_files import NETWORKS, write_network

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
CPU = torch.device("cpu")


def networks(folder: Path, name: str) -> OnnxPictureNetworks:
    path = write_network(NETWORKS[name], folder / f"{name}.onnx")
    return OnnxPictureNetworks(path, hashlib.sha256(path.read_bytes()).hexdigest(), find_contract(path))


def engines(folder: Path, model: OnnxPictureNetworks, backend: str) -> Engines[OnnxPictureNetworks]:
    policy = EnginePolicy(backend, model.contract.precision, "exact", "build", weights="inside")
    return Engines(model, EngineStore(folder / "engines"), policy, CPU)


def through(found: Engines[OnnxPictureNetworks], frames: list[Tensor], **wishes: Tensor) -> list[Tensor]:
    return list(picture_filter(found, *frames[0].shape[:2], Wishes(**wishes))(frames))


def frames_of(height: int, width: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(height, width, 3, generator=generator) for _ in range(3)]


@pytest.mark.parametrize("name", ["enlarge", "signed", "coarse", "fixed", "number", "second", "second of its own"])
def test_an_engine_gives_what_the_file_gives(tmp_path: Path, name: str) -> None:
    model, frames = networks(tmp_path, name), frames_of(44, 52)
    wishes = {"more": torch.rand(1, 44, 52, 3)} if name.startswith("second") else {}
    eager, built = engines(tmp_path, model, "eager"), engines(tmp_path, model, "onnxruntime")
    one, other = through(eager, frames, **wishes), through(built, frames, **wishes)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(one, other, strict=True))
    assert (served_by(eager), served_by(built)) == ("ONNX Runtime, fp32 on cpu", "onnxruntime, fp32 on cpu")
    (note,) = built.take_notes()
    assert note.startswith(f"{NETWORK} engine built in ") and not eager.take_notes()


def test_the_result_is_that_of_the_file_itself(tmp_path: Path) -> None:
    model, (frame, *_) = networks(tmp_path, "enlarge"), frames_of(30, 40)
    (found, *_) = through(engines(tmp_path, model, "eager"), [frame])
    session = onnxruntime.InferenceSession(str(model.path), providers=["CPUExecutionProvider"])
    (wanted,) = session.run(None, {"x": frame.permute(2, 0, 1)[None].numpy()})
    assert torch.equal(found, torch.from_numpy(wanted)[0].permute(1, 2, 0))


def test_another_file_or_another_contract_is_another_engine(tmp_path: Path) -> None:
    model = networks(tmp_path, "signed")
    others = [replace(model, sha256="0" * 64), replace(model, contract=replace(model.contract, multiple=2))]
    specs = [each.components[NETWORK].spec for each in (model, *others)]
    assert len({(spec.config_sha256, spec.weights_sha256) for spec in specs}) == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["enlarge", "coarse", "fixed", "number"])
def test_tensorrt_compiles_the_file(tmp_path: Path, name: str) -> None:
    pytest.importorskip("tensorrt_rtx")
    model = networks(tmp_path, name)
    network, found = model.components[NETWORK], model.sizes(96, 64)
    spec = EngineSpec(network.spec, network.spec.limits.exact(found), model.contract.precision)
    TensorRTBackend("sm_89").build(network.load("fp32"), spec, tmp_path, quiet)
    assert (tmp_path / PLAN).stat().st_size > 1000


def test_only_backends_that_take_a_graph_serve() -> None:
    assert backend_for("auto", CPU) == "eager"
    assert [backend_for(name, CPU) for name in ("onnxruntime", "tensorrt", "eager")] == [
        "onnxruntime",
        "tensorrt",
        "eager",
    ]
    with pytest.raises(
        InputError, match="Expected one of tensorrt, onnxruntime or eager for an ONNX file, found inductor"
    ):
        backend_for("inductor", CPU)
