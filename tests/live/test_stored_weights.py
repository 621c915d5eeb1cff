"""I2V Compile Model over checkpoints as people have them: in every stored precision, quantized ones among them.

Where the network as a whole can have no engine, its repeated blocks have.
"""

from typing import Any

import pytest

from i2v_tensorrt.remote.comfyui.client import ComfyClient
from i2v_tensorrt.tests.live.answers import free, run
from i2v_tensorrt.tests.live.graphs import Prompt, changed, node
from i2v_tensorrt.tests.live.test_compile_model import (
    A14B,
    COMPILED,
    DIFFERENCE,
    FRESH,
    LOADER,
    LORA,
    PLAIN_SAMPLER,
    core_models,
    patched,
    told,
    wan,
)

__all__ = ["core_models"]
WHOLE = "of 3 calls by the inductor engine"
BLOCKS = "6 of 6 calls of WanAttentionBlock by the inductor engine"
"""Two blocks in three calls, each of both guidance branches at once."""
QUANTIZED = "Block by block: Expected weights that are not quantized, found layers of mixed_precision_ops."


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fp16", "bf16", "fp8"])
def test_weights_in_another_precision_than_the_one_computed_in(client: ComfyClient, kind: str) -> None:
    for _ in range(2):
        assert WHOLE in told(client, wan(f"{A14B}_{kind}", seed=next(FRESH)))


def by_blocks(client: ComfyClient, prompt: Prompt) -> list[str]:
    """The lines of a run whose frames are those of the graph without the node, and whose blocks all ran by engines."""
    lines = told(client, prompt).splitlines()
    assert lines[0] == BLOCKS
    return lines


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny_wan21_i2v", A14B])
def test_scaled_fp8_runs_block_by_block(client: ComfyClient, name: str) -> None:
    name = f"{name}_fp8_scaled"
    for _ in range(2):
        assert by_blocks(client, wan(name, seed=next(FRESH)))[-1] == QUANTIZED
    free(client, free_memory=True)
    by_blocks(client, wan(name, seed=next(FRESH)))


@pytest.mark.slow
def test_a_lora_over_scaled_fp8_is_put_on_and_taken_off(client: ComfyClient) -> None:
    name = f"{A14B}_fp8_scaled"
    for prompt in (
        wan(name, seed=next(FRESH)),
        behind(name, "LoraLoaderModelOnly", **LORA),
        wan(name, seed=next(FRESH)),
    ):
        by_blocks(client, prompt)
    # A LoRA that changed nothing would show nothing.
    apart = run(client, changed(behind(name, "LoraLoaderModelOnly", **LORA), {PLAIN_SAMPLER: {"model": [LOADER, 0]}}))
    assert apart.outputs[DIFFERENCE]["mse"][0] > 1e-4


def behind(name: str, class_type: str, **inputs: Any) -> Prompt:
    """The graph with another node behind both models."""
    return changed(patched(next(FRESH), class_type, **inputs), {LOADER: {"unet_name": f"{name}.safetensors"}})


@pytest.mark.slow
def test_another_packs_patch_of_a_block_calls_its_engine(client: ComfyClient) -> None:
    lines = by_blocks(client, behind(A14B, "ProbeBlockPatch", share=0.5))
    assert lines[-1] == "Block by block: Expected no patches in the network, found patches_replace (dit)."
    apart = changed(behind(A14B, "ProbeBlockPatch", share=0.5), {PLAIN_SAMPLER: {"model": [LOADER, 0]}})
    assert run(client, apart).outputs[DIFFERENCE]["mse"][0] > 1e-4


@pytest.mark.slow
def test_another_packs_layers_give_their_weights_as_they_are_called(client: ComfyClient) -> None:
    prompt = wan("tiny_wan21_i2v_fp16", next(FRESH))
    prompt["30"] = node("ProbeForeignLayers", model=[LOADER, 0])
    prompt = changed(prompt, {COMPILED: {"model": ["30", 0]}, PLAIN_SAMPLER: {"model": ["30", 0]}})
    lines = by_blocks(client, prompt)
    assert "Expected layers of ComfyUI's core, found " in lines[-1] and lines[-1].endswith("DequantizedAsCalled.")
