"""From a network to ONNX: names, dynamic dimensions, inputs to trace and verify with, and refusals."""

import errno
import logging
import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from i2v_tensorrt.common.errors import EngineError, StorageError
from i2v_tensorrt.common.shapes import DimRange, ShapeProfile
from i2v_tensorrt.common.spec import TensorSpec
from i2v_tensorrt.engine_builder.backends.onnxruntime import OnnxRuntimeBackend
from i2v_tensorrt.engine_builder.build.build import quiet
from i2v_tensorrt.engine_builder.build.compile import compile_engine
from i2v_tensorrt.engine_builder.graph.onnx_export import (
    FILE_NAME,
    OPSET,
    example_inputs,
    export_onnx,
    exporter_version,
    trace_sizes,
)

from ...helpers.toys import LIMITS, Computed, ToyNetwork, fail, toy_network, toy_request, toy_spec

SIZES = {"batch": 2, "frames": 3, "latent_height": 8, "latent_width": 6}


@settings(deadline=None)
@given(least=st.integers(1, 40), steps=st.integers(1, 40), multiple=st.sampled_from([1, 2, 8]))
def test_a_dynamic_dimension_is_traced_at_a_size_that_it_may_take_and_not_at_one(
    least: int, steps: int, multiple: int
) -> None:
    limits = DimRange(least, least * multiple, (least + steps) * multiple, multiple)
    size = trace_sizes(ShapeProfile({"n": limits}))["n"]
    assert limits.violation(size) is None
    assert size > 1


def test_a_fixed_dimension_is_traced_at_its_size() -> None:
    assert trace_sizes(LIMITS.exact({**SIZES, "batch": 1})) == {**SIZES, "batch": 1}


def test_inputs_are_drawn_alike_for_one_seed_and_what_guidance_shares_once_for_a_rewritten_network() -> None:
    first, again, other = (example_inputs(toy_spec(), SIZES, seed) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)
    shapes = {name: tuple(value.shape) for name, value in first.items()}
    assert shapes == {"sample": (2, 4, 3, 8, 6), "strength": (2, 4)}
    for rewrites in ((), ("joined",)):
        drawn = example_inputs(replace(toy_spec(), rewrites=rewrites), SIZES)
        assert torch.equal(drawn["sample"][0], drawn["sample"][1]) == bool(rewrites)
        assert not torch.equal(drawn["strength"][0], drawn["strength"][1])
        assert drawn["sample"].is_contiguous()


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("fp16", torch.float16)])
def test_inputs_have_the_declared_dtypes_and_spans(precision: str, dtype: torch.dtype) -> None:
    ids = TensorSpec("ids", ("batch", 200), "int64", span=(0, 5))
    spec = toy_spec(precision=precision, inputs=(*toy_network().inputs, ids))
    drawn = example_inputs(spec, SIZES)
    assert drawn["sample"].dtype == dtype
    assert drawn["strength"].dtype == torch.float32
    assert 0.5 <= drawn["strength"].min() < drawn["strength"].max() <= 2.0
    assert sorted(drawn["ids"].unique().tolist()) == [0, 1, 2, 3, 4], "the end of a span is not drawn"


def dims(graph: Any) -> dict[str, list[int | str]]:
    return {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }


def test_the_graph_has_the_specifications_names_and_dimensions(tmp_path: Path) -> None:
    model = onnx.load(export_onnx(ToyNetwork(), toy_spec(), tmp_path))
    found = dims(model.graph)
    assert list(found) == ["sample", "strength", "prediction"]
    assert found["sample"][1] == 4
    assert found["strength"] == [found["sample"][0], 4]
    assert [isinstance(dim, str) for dim in found["sample"]] == [True, False, True, True, True]
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == OPSET


def test_a_profile_of_one_size_gives_a_graph_of_fixed_sizes_and_leaves_loggers_and_warnings_as_they_were(
    tmp_path: Path,
) -> None:
    spec, logger = toy_spec(LIMITS.exact(SIZES)), logging.getLogger("torch.onnx")
    before, filters = logger.level, list(warnings.filters)
    graph = onnx.load(export_onnx(ToyNetwork(), spec, tmp_path)).graph
    assert dims(graph) == {"sample": [2, 4, 3, 8, 6], "strength": [2, 4], "prediction": [2, 4, 3, 8, 6]}
    with pytest.raises(EngineError):
        export_onnx(Computed(decides_by_its_values), spec, tmp_path)
    assert (logger.level, warnings.filters) == (before, filters)


class Shrink(torch.nn.Module):
    """Eight pixels to a latent, as a picture's encoder does."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(image, 8)


def test_a_dimension_may_be_a_multiple_of_another(tmp_path: Path) -> None:
    side = DimRange(4, 8, 32)
    spec = toy_spec(
        ShapeProfile({"latent_height": side, "latent_width": side}),
        inputs=(TensorSpec("image", (1, 3, "latent_height*8", "latent_width*8")),),
        outputs=(TensorSpec("latents", (1, 3, "latent_height", "latent_width")),),
    )
    path = export_onnx(Shrink(), spec, tmp_path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for height, width in ((4, 4), (7, 31)):
        image = example_inputs(spec, {"latent_height": height, "latent_width": width})["image"]
        found = torch.from_numpy(session.run(None, {"image": image.numpy()})[0])
        assert torch.allclose(found, Shrink()(image), atol=1e-6)


def decides_by_its_values(sample: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    """What no graph can hold."""
    return sample if strength.sum() > 0 else -sample


def test_a_network_that_cannot_be_exported_is_told_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="^The core network cannot be exported to ONNX: ") as caught:
        export_onnx(Computed(decides_by_its_values), toy_spec(), tmp_path)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_while_the_graph_is_written_is_a_storage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.onnx.ONNXProgram, "save", fail(errno.ENOSPC))
    with pytest.raises(StorageError, match=os.strerror(errno.ENOSPC)):
        compile_engine(toy_request(OnnxRuntimeBackend(), spec=toy_spec(LIMITS.exact(SIZES))), tmp_path, quiet)
    assert not (tmp_path / FILE_NAME).exists()


def test_the_exporters_version_names_all_that_a_graph_depends_on() -> None:
    import onnxscript

    for part in (torch.__version__, onnxscript.__version__, f"opset {OPSET}"):
        assert part in exporter_version()
    assert exporter_version(OPSET + 1) != exporter_version()
