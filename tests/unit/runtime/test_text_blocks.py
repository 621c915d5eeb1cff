"""Wan's text encoder, 11 GB as published, by an engine of one of its blocks, which may come from host memory."""

from pathlib import Path

import pytest
import torch

from i2v_tensorrt.engine_builder.build.build import build_engine
from i2v_tensorrt.engine_builder.store.store import EngineStore
from i2v_tensorrt.pipeline.dummies.wan import write_tiny_wan
from i2v_tensorrt.pipeline.models.registry import open_model
from i2v_tensorrt.runtime.engines.engine_set import EngineSet
from i2v_tensorrt.runtime.engines.policy import EnginePolicy

from ...helpers.toys import CPU, InProcess


@pytest.mark.slow
def test_the_text_encoder_runs_block_by_block_wherever_its_weights_are(tmp_path: Path) -> None:
    policy = EnginePolicy(backend="inductor", precision="fp32")
    model, store = open_model(write_tiny_wan(tmp_path / "wan")), EngineStore(tmp_path / "engines")
    engines = EngineSet(model, store, policy, CPU)
    request = engines.catalog.request("text_encoder", {"tokens": 9})
    assert request.of_blocks
    build_engine(request, store, InProcess())
    eager, runner = model.load("text_encoder", "fp32"), engines.runner("text_encoder", {"tokens": 9})
    found: dict[bool, list[torch.Tensor]] = {}
    for streamed in (False, True):
        runner.unload()
        runner.room_bytes = 0 if streamed else None
        runner.load()
        assert (runner.warning is not None) is streamed
        texts = [torch.arange(3, 3 + tokens)[None] for tokens in (1, 9, 512)]
        found[streamed] = [runner({"input_ids": ids % 32})["text_states"] for ids in texts]
        for ids, states in zip(texts, found[streamed], strict=True):
            torch.testing.assert_close(states, eager(ids % 32), rtol=1e-5, atol=1e-5)
    assert all(map(torch.equal, found[False], found[True]))
