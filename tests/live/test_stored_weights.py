"""I2V Compile Model over checkpoints as people have them: in every stored precision, quantized ones among them.

Where the network as a whole can have no engine, its repeated blocks have.
"""

from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from i2v_tensorrt.remote.comfyui.client import ComfyClient
from i2v_tensorrt.remote.comfyui.server import ComfyHost, start_server
from i2v_tensorrt.tests.live.answers import free, run
from i2v_tensorrt.tests.live.core_graphs import hunyuan, ltxv, sd3, ti2v
from i2v_tensorrt.tests.live.device import decibels
from i2v_tensorrt.tests.live.graphs import Prompt, changed, node
from i2v_tensorrt.tests.live.test_compile_model import (
    A14B,
    COMPILED,
    DIFFERENCE,
    FRAMES,
    FRESH,
    LOADER,
    LORA,
    PLAIN_FRAMES,
    PLAIN_SAMPLER,
    VAE,
    core_models,
    heard_of,
    patched,
    sampler,
    svd,
    told,
    told_beside_fp32,
    wan,
    write_core_models,
)

__all__ = ["core_models"]
WHOLE = "of 3 calls by the inductor engine"
BLOCKS = "6 of 6 calls of WanAttentionBlock by the inductor engine"
"""Two blocks in three calls, each of both guidance branches at once."""
QUANTIZED = "Block by block: Expected weights that are not quantized, found layers of mixed_precision_ops."
SVD = "tiny_svd_core"
FP8_PSNR = 35.0
"""What two ways to multiply in fp8 are alike by at least, in dB: one number rounded the other way changes all after."""
GRAPHS: dict[str, Callable[[str, int], Prompt]] = {
    "tiny_wan21_i2v": wan,
    A14B: wan,
    "tiny_wan22_5b": ti2v,
    SVD: lambda name, seed: changed(svd(seed), {LOADER: {"unet_name": f"{name}.safetensors"}}),
    "tiny_hunyuan": hunyuan,
    "tiny_ltxv": ltxv,
    "tiny_sd3": sd3,
}
"""The graph of each network of the core's."""
BLOCKS_ALONE = {"tiny_ltxv": "BasicTransformerBlock", "tiny_sd3": "JointBlock"}
"""Networks that have no engine as a whole, and the class of their blocks."""
SVD_KINDS = ("bf16", "fp8", "fp8_scaled")
KINDS = ("fp16", "bf16", "fp8")
USUAL = {(A14B, kind) for kind in KINDS}
"""Files of whole networks that every run of the tests samples with; a full count takes them all."""
USUAL_BY_BLOCKS = {("tiny_ltxv", "_fp8_scaled")}
"""The same of networks that run block by block."""


def full_count(*values: str, usual: bool) -> Any:
    """A test's values, left to a full count unless they are usual."""
    return pytest.param(*values, marks=() if usual else pytest.mark.torture)


WHOLES = [name for name in GRAPHS if name not in BLOCKS_ALONE]


@pytest.fixture(scope="module")
def svd_kinds(host: ComfyHost, base_directory: Path, core_models: None) -> None:
    """The larger network's files of other kinds, for this module alone."""
    write_core_models(host, base_directory, ",".join(SVD_KINDS))


def line_of(client: ComfyClient, name: str, file: str) -> str:
    """What the node says after a run of that network's graph with that file."""
    tell = told_beside_fp32 if name == SVD else told
    return tell(client, GRAPHS[name](file, next(FRESH)))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), [full_count(*each, usual=each in USUAL) for each in product(WHOLES, KINDS)])
def test_weights_in_another_precision_than_the_one_computed_in(
    client: ComfyClient, name: str, kind: str, request: pytest.FixtureRequest
) -> None:
    """One engine serves every kind of file."""
    if name == SVD:
        request.getfixturevalue("svd_kinds")
    file = name if (name, kind) == (SVD, "fp16") else f"{name}_{kind}"
    for _ in range(2):
        assert WHOLE in line_of(client, name, file)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"),
    [full_count(*each, usual=each in USUAL_BY_BLOCKS) for each in product(BLOCKS_ALONE, ("", "_bf16", "_fp8_scaled"))],
)
def test_a_network_that_has_no_engine_as_a_whole_runs_block_by_block(client: ComfyClient, name: str, kind: str) -> None:
    """LTXV makes tensors of its own as it is called; SD3, whose last block differs, is called without a wrapper."""
    line_of(client, name, f"{name}{kind}")
    block = BLOCKS_ALONE[name]
    assert f"6 of 6 calls of {block} by the inductor engine" in line_of(client, name, f"{name}{kind}")


def by_blocks(client: ComfyClient, prompt: Prompt) -> list[str]:
    """The lines of a run whose frames are those of the graph without the node, and whose blocks all ran by engines."""
    lines = told(client, prompt).splitlines()
    assert lines[0] == BLOCKS
    return lines


@pytest.mark.slow
@pytest.mark.parametrize("name", [full_count(name, usual=name in (A14B, "tiny_wan21_i2v")) for name in WHOLES])
def test_scaled_fp8_runs_block_by_block(client: ComfyClient, name: str, request: pytest.FixtureRequest) -> None:
    if name == SVD:
        request.getfixturevalue("svd_kinds")

    def lines() -> list[str]:
        return line_of(client, name, f"{name}_fp8_scaled").splitlines()

    for found in (lines(), lines()):
        assert found[-1] == QUANTIZED
        by_engine = [line.split() for line in found if " calls of " in line]
        assert by_engine and all(words[0] == words[2] and "engine" in words for words in by_engine), found
    free(client, free_memory=True)
    assert lines()[-1] == QUANTIZED


@pytest.fixture
def multiplying(host: ComfyHost, base_directory: Path, server_arguments: list[str]) -> Iterator[ComfyClient]:
    """A server that multiplies in fp8, as those on newer GPUs do; a CPU does so if it is told that it can."""
    with start_server(host, base_directory, [*server_arguments, "--supports-fp8-compute"]) as server:
        yield ComfyClient(server.url)


@pytest.mark.slow
def test_products_in_fp8_are_the_engines_too(multiplying: ComfyClient) -> None:
    """A file whose mark has one element: the frames in full precision are further away than the engine's."""
    for _ in range(2):
        seed = next(FRESH)
        prompt = wan(f"{A14B}_fp8_product", seed)
        prompt["60"] = node("UNETLoader", unet_name=f"{A14B}_fp8_scaled.safetensors", weight_dtype="default")
        prompt["61"] = sampler(["60", 0], seed)
        prompt["62"] = node("VAEDecode", samples=["61", 0], vae=[VAE, 0])
        for name, frames in (("63", FRAMES), ("64", PLAIN_FRAMES)):
            prompt[name] = node("ProbeDifference", a=[frames, 0], b=["62", 0])
        result, line = heard_of(multiplying, prompt, FP8_PSNR)
        assert line.splitlines()[0] == BLOCKS
        apart, from_full, plain_from_full = (
            decibels(result.outputs[name]["mse"][0]) for name in (DIFFERENCE, "63", "64")
        )
        assert max(from_full, plain_from_full) < 45, "products in fp8 are seen in the frames"
        assert apart > from_full


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
