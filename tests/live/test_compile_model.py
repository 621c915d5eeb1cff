"""I2V Compile Model between the core's own loaders and samplers."""

import itertools
import math
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from i2v_tensorrt.remote.comfyui.client import ComfyClient, RunResult
from i2v_tensorrt.remote.comfyui.server import ComfyHost
from i2v_tensorrt.tests.live.answers import engines_in, failure, free, interrupt_at, run, succeeded
from i2v_tensorrt.tests.live.device import decibels, keeps_outputs
from i2v_tensorrt.tests.live.graphs import Prompt, changed, node
from i2v_tensorrt.tests.live.texts import interrupt_on, run_and_hear

SCRIPT = Path(__file__).resolve().with_name("core_models.py")
LEAST_PSNR = 40.0
COMPARED = "2 of 3 calls by the inductor engine, 1 by both, to compare them"
ALL_BY_THE_ENGINE = "3 of 3 calls by the inductor engine" if keeps_outputs() else COMPARED
"""What a later run says: one in which the model was loaded anew compares again."""
CACHED_STEPS = 10
NONE_BY_THE_ENGINE = "3 of 3 calls by the network as it is"
A14B = "tiny_wan22_a14b"
LORA = {"lora_name": "tiny_wan_lora.safetensors", "strength_model": 1.0}
AS_IT_IS, BY_BLOCKS = "The network runs as it is", "Block by block"
FRESH = itertools.count(1000)
"""Seeds that no prompt has had: ComfyUI answers one that it knows from its cache, and the node says nothing."""
LOADER, COMPILED, POSITIVE, NEGATIVE, VIDEO, VAE, SAMPLER, FRAMES, PLAIN_SAMPLER, PLAIN_FRAMES, DIFFERENCE = (
    str(number) for number in range(1, 12)
)


def write_core_models(host: ComfyHost, base_directory: Path, *svd_kinds: str) -> None:
    """Checkpoints in the core's layouts, in a server's folders; see the script's `main`."""
    command = [str(host.python), str(SCRIPT), str(host.directory), str(base_directory / "models"), *svd_kinds]
    done = subprocess.run(command, capture_output=True, text=True, cwd=base_directory)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module", autouse=True)
def core_models(host: ComfyHost, base_directory: Path) -> None:
    """Those of the server that most tests share."""
    write_core_models(host, base_directory)


def compiled(model: Any, **inputs: Any) -> dict[str, Any]:
    settings = {"on_missing": "build", "shape_policy": "exact", "backend": "inductor"}
    return node("I2VTRT_CompileModel", model=model, **{**settings, **inputs})


def sampler(model: Any, seed: int = 1, steps: int = 3, cfg: float = 3.0) -> dict[str, Any]:
    settings = {"sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    links = {"positive": [VIDEO, 0], "negative": [VIDEO, 1], "latent_image": [VIDEO, 2]}
    return node("KSampler", model=model, seed=seed, steps=steps, cfg=cfg, **settings, **links)


def wan(name: str, seed: int = 1, model: Any = None, plain: Any = None, **inputs: Any) -> Prompt:
    """The core's graph for a Wan twice, with the node and without, and how far the frames are apart."""
    tokens = {"tokens": 12, "width": 4096, "picture_tokens": 257}
    picture = node("EmptyImage", width=64, height=64, batch_size=1, color=0x3366AA)
    video = {"vae": [VAE, 0], "width": 64, "height": 64, "length": 9, "batch_size": 1, "start_image": ["20", 0]}
    return {
        LOADER: node("UNETLoader", unet_name=f"{name}.safetensors", weight_dtype="default"),
        COMPILED: compiled([LOADER, 0], **inputs),
        POSITIVE: node("ProbeConditioning", seed=1, **tokens),
        NEGATIVE: node("ProbeConditioning", seed=2, **tokens),
        VAE: node("VAELoader", vae_name="tiny_wan_vae.safetensors"),
        "20": picture,
        VIDEO: node("WanImageToVideo", positive=[POSITIVE, 0], negative=[NEGATIVE, 0], **video),
        SAMPLER: sampler(model or [COMPILED, 0], seed),
        FRAMES: node("VAEDecode", samples=[SAMPLER, 0], vae=[VAE, 0]),
        PLAIN_SAMPLER: sampler(plain or [LOADER, 0], seed),
        PLAIN_FRAMES: node("VAEDecode", samples=[PLAIN_SAMPLER, 0], vae=[VAE, 0]),
        DIFFERENCE: node("ProbeDifference", a=[FRAMES, 0], b=[PLAIN_FRAMES, 0]),
    }


def custom(prompt: Prompt) -> Prompt:
    """The same with the core's custom sampler and guider in KSampler's place."""
    found = dict(prompt)
    found["50"] = node("KSamplerSelect", sampler_name="euler")
    for number, name in enumerate((SAMPLER, PLAIN_SAMPLER), 51):
        given = prompt[name]["inputs"]
        noise, sigmas, guider = (f"{number}{kind}" for kind in ("noise", "sigmas", "guider"))
        conditioning = {"positive": given["positive"], "negative": given["negative"]}
        found[noise] = node("RandomNoise", noise_seed=given["seed"])
        found[sigmas] = node("BasicScheduler", model=given["model"], scheduler="simple", steps=3, denoise=1.0)
        found[guider] = node("CFGGuider", model=given["model"], cfg=given["cfg"], **conditioning)
        links = {"noise": [noise, 0], "guider": [guider, 0], "sampler": ["50", 0], "sigmas": [sigmas, 0]}
        found[name] = node("SamplerCustomAdvanced", latent_image=given["latent_image"], **links)
    return found


def told(client: ComfyClient, prompt: Prompt) -> str:
    """What the node says after a run whose frames, or latents, are those of the graph without it."""
    return heard_of(client, prompt, LEAST_PSNR)[1]


def heard_of(client: ComfyClient, prompt: Prompt, least_psnr: float) -> tuple[RunResult, str]:
    """The run, and what the node says after it; both ways are as near as that, in dB."""
    result, heard = run_and_hear(client, prompt)
    seen, line = succeeded(result).outputs[DIFFERENCE], heard[COMPILED][-1]
    least, most = seen["range"]
    assert seen["std"][0] > 0.01, "a clip of one colour shows nothing"
    assert decibels(seen["mse"][0] / max(most - least, 1.0) ** 2) >= least_psnr, (seen, line)
    return result, line


def svd(seed: int = 1, model: Any = None, plain: Any = None, **inputs: Any) -> Prompt:
    """The same for Stable Video Diffusion: four frames of 64x64."""
    latent = ["20", 0]
    tokens = {"tokens": 1, "width": 1024, "latent": latent}
    links = {"positive": [POSITIVE, 0], "negative": [NEGATIVE, 0], "latent_image": latent}
    prompt = wan("tiny_svd_core", seed, model, plain, **inputs)
    del prompt[VIDEO]
    prompt |= {
        POSITIVE: node("ProbeConditioning", seed=1, **tokens),
        NEGATIVE: node("ProbeConditioning", seed=2, **tokens),
        VAE: node("VAELoader", vae_name="taesd"),
        "20": node("EmptyLatentImage", width=64, height=64, batch_size=4),
    }
    return changed(prompt, {SAMPLER: links, PLAIN_SAMPLER: links})


def patched(seed: int, class_type: str, compiled: Any = None, **inputs: Any) -> Prompt:
    """The graph with another node of the core's behind both models, or so many inputs of the compiled one."""
    return wan(A14B, seed, ["30", 0], ["31", 0], **(compiled or {})) | {
        "30": node(class_type, model=[COMPILED, 0], **inputs),
        "31": node(class_type, model=[LOADER, 0], **inputs),
    }


def held_models(client: ComfyClient) -> list[str]:
    """The models in the server's memory."""
    return run(client, {"1": node("ProbeModels")}).outputs["1"]["models"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny_wan21_i2v", A14B])
def test_wan_makes_the_clip_that_it_makes_without_the_node(client: ComfyClient, name: str) -> None:
    first = told(client, wan(name)).splitlines()
    assert first[0] == COMPARED
    assert len(first) == 1 or "WanModel engine built in" in first[1]
    assert told(client, wan(name, seed=2)) == ALL_BY_THE_ENGINE


@pytest.mark.slow
def test_svd_makes_the_clip_that_it_makes_without_the_node(client: ComfyClient) -> None:
    """As near to the clip in fp32: in fp16 the network's own rounding takes this one 40 dB away from it."""
    assert "2 of 3 calls by the inductor engine" in told_beside_fp32(client, svd())
    assert told_beside_fp32(client, svd(seed=2)) == ALL_BY_THE_ENGINE


def told_beside_fp32(client: ComfyClient, prompt: Prompt) -> str:
    """What the node says after a run whose frames are as near to those in fp32 as the network's own, within 3 dB."""
    precise = {**prompt[PLAIN_SAMPLER]["inputs"], "model": ["70", 0]}
    beside = {
        "70": node("ModelComputeDtype", model=[LOADER, 0], dtype="fp32"),
        "71": node("KSampler", **precise),
        "72": node("VAEDecode", samples=["71", 0], vae=[VAE, 0]),
        "73": node("ProbeDifference", a=[FRAMES, 0], b=["72", 0]),
        "74": node("ProbeDifference", a=[PLAIN_FRAMES, 0], b=["72", 0]),
    }
    result, heard = run_and_hear(client, prompt | beside)
    assert succeeded(result).outputs[DIFFERENCE]["std"][0] > 0.01, "a clip of one colour shows nothing"
    engine, network = (result.outputs[name]["mse"][0] for name in ("73", "74"))
    assert engine <= max(2 * network, 10 ** (-LEAST_PSNR / 10)), (engine, network)
    return heard[COMPILED][-1]


@pytest.mark.slow
class TestOneEngine:
    """What is done to the model between two runs needs no other engine, and changes what it should."""

    @pytest.fixture(autouse=True)
    def built(self, client: ComfyClient, base_directory: Path) -> Iterator[None]:
        """The engine is there before, and no other one after."""
        told(client, wan(A14B, seed=next(FRESH)))
        before = engines_in(base_directory)
        yield
        assert engines_in(base_directory) == before

    def test_a_lora_is_put_on_and_taken_off(self, client: ComfyClient) -> None:
        assert told(client, wan(A14B, seed=3)) == ALL_BY_THE_ENGINE
        with_lora = [patched(seed, "LoraLoaderModelOnly", **LORA) for seed in (3, 4, 6)]
        assert told(client, with_lora[0]).startswith("2 of 3 calls by the inductor")
        assert told(client, with_lora[1]) == ALL_BY_THE_ENGINE
        assert told(client, wan(A14B, seed=5)) == ALL_BY_THE_ENGINE
        # A LoRA that changed nothing would show nothing.
        apart = run(client, changed(with_lora[2], {PLAIN_SAMPLER: {"model": [LOADER, 0]}}))
        assert apart.outputs[DIFFERENCE]["mse"][0] > 1e-4

    def test_memory_is_freed_and_nothing_of_ours_is_held_between_runs(self, client: ComfyClient) -> None:
        for seed, outputs in ((7, False), (8, True)):
            free(client, free_memory=outputs)
            assert held_models(client) == []
            assert " of 3 calls by the inductor engine" in told(client, wan(A14B, seed=seed))
            assert "I2VEngine" not in held_models(client)

    def test_a_run_is_interrupted(self, client: ComfyClient) -> None:
        long = changed(wan(A14B, seed=10), {SAMPLER: {"steps": 10000}})
        result = client.run(long, interrupt_at(client, SAMPLER, 3))
        assert result.status == "interrupted"
        assert result.previews
        assert told(client, wan(A14B, seed=11)) == ALL_BY_THE_ENGINE

    def test_custom_samplers_and_guiders(self, client: ComfyClient) -> None:
        assert told(client, custom(wan(A14B, seed=12))) == ALL_BY_THE_ENGINE

    @pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
    @pytest.mark.parametrize("cache", ["EasyCache", "LazyCache"])
    def test_the_cores_step_caches_stay_outside(self, client: ComfyClient, cache: str, first: bool) -> None:
        """They wrap the network where the engine does, and leave out calls of either alike."""
        settings = {"reuse_threshold": 1.0, "start_percent": 0.1, "end_percent": 0.95, "verbose": False}
        longer = {name: {"steps": CACHED_STEPS} for name in (SAMPLER, PLAIN_SAMPLER)}
        prompt = changed(patched(next(FRESH), cache, **settings), longer)
        if first:
            links = {"30": LOADER, COMPILED: "30", SAMPLER: COMPILED}
            prompt = changed(prompt, {name: {"model": [source, 0]} for name, source in links.items()})
        line = told(client, prompt)
        assert "calls by the inductor engine" in line
        assert int(line.split(" of ")[1].split()[0]) < CACHED_STEPS, line


@pytest.mark.slow
def test_a_build_is_interrupted(client: ComfyClient, base_directory: Path) -> None:
    small = changed(wan(A14B), {VIDEO: {"width": 80, "height": 64}})
    before = engines_in(base_directory)
    result, _ = run_and_hear(client, small, interrupt_on(client, SAMPLER, "building "))
    assert result.status == "interrupted"
    assert engines_in(base_directory) == before
    assert told(client, wan(A14B, seed=20)).startswith(("3 of 3", "2 of 3"))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnxruntime", "inductor"])
def test_times_for_each_frame(client: ComfyClient, backend: str, request: pytest.FixtureRequest) -> None:
    """The 5B keeps its first frame: it is given a time for each. No small VAE decodes its latents of 48 channels."""
    if backend == "onnxruntime":
        request.getfixturevalue("onnxruntime")
    prompt = wan("tiny_wan22_5b", backend=backend)
    for name in (FRAMES, PLAIN_FRAMES, DIFFERENCE, "20"):
        del prompt[name]
    prompt["21"] = node("SolidMask", value=0.5, width=8, height=8)
    prompt["22"] = node("SetLatentNoiseMask", samples=[VIDEO, 2], mask=["21", 0])
    prompt["23"] = node("SaveLatent", samples=[SAMPLER, 0], filename_prefix="one")
    prompt["24"] = node("SaveLatent", samples=[PLAIN_SAMPLER, 0], filename_prefix="other")
    masked = {"latent_image": ["22", 0]}
    prompt = changed(prompt, {VIDEO: {"start_image": None}, SAMPLER: masked, PLAIN_SAMPLER: masked})
    result, heard = run_and_hear(client, prompt)
    one, other = (latents(client, succeeded(result), name) for name in ("23", "24"))
    assert one.shape == (1, 48, 3, 8, 8) and other.std() > 0.01
    spread = float(other.max() - other.min())
    assert 20 * math.log10(spread / (one - other).square().mean().sqrt().clamp_min(1e-9)) >= LEAST_PSNR
    assert heard[COMPILED][-1].startswith(f"2 of 3 calls by the {backend} engine")


def latents(client: ComfyClient, result: RunResult, name: str) -> torch.Tensor:
    """What the core's Save Latent has written."""
    (saved,) = result.outputs[name]["latents"]
    return load(client.view(saved["filename"], saved["subfolder"], saved["type"]))["latent_tensor"].double()


@pytest.mark.torture
@pytest.mark.usefixtures("onnxruntime")
def test_an_engine_that_holds_weights_is_built_for_each_lora(client: ComfyClient, base_directory: Path) -> None:
    backend, by_it = {"backend": "onnxruntime"}, "calls by the onnxruntime engine"
    assert f"2 of 3 {by_it}" in told(client, wan(A14B, 40, **backend))
    before = engines_in(base_directory)
    assert f"2 of 3 {by_it}" in told(client, patched(41, "LoraLoaderModelOnly", backend, **LORA))
    assert len(engines_in(base_directory) - before) == 1
    assert by_it in told(client, wan(A14B, 42, **backend))
    assert len(engines_in(base_directory) - before) == 1
    free(client, free_memory=False)
    assert held_models(client) == []
    assert by_it in told(client, wan(A14B, 43, **backend))


@pytest.mark.parametrize("value", [5, "x", {"a": 1}, None, True])
def test_what_is_no_model_is_refused_in_a_sentence(client: ComfyClient, value: object) -> None:
    prompt = {COMPILED: compiled(value), "60": node("PreviewAny", source=[COMPILED, 1])}
    assert "Expected model over a link from a node that gives it, found " in failure(client, prompt)


ROPE = {"scale_x": 2.0, "scale_y": 2.0, "scale_t": 1.0, "shift_x": 0.0, "shift_y": 0.0, "shift_t": 0.0}
WHEN = {"start_percent": 0.0, "end_percent": 1.0}
SKIP = {"double_layers": "0", "single_layers": "", "scale": 3.0, "rescaling_scale": 0.0, **WHEN}


class TestFallback:
    """What an engine of the network cannot honour runs block by block or as it is, and the node says so."""

    @pytest.mark.parametrize(
        ("kind", "inputs", "found"),
        [
            ("ScaleROPE", ROPE, f"rope_options ({', '.join(ROPE)})"),
            ("SkipLayerGuidanceDiT", SKIP, "patches_replace (dit)"),
        ],
    )
    def test_a_patch(self, client: ComfyClient, kind: str, inputs: dict[str, Any], found: str) -> None:
        if kind not in client.object_info():
            pytest.skip(f"this ComfyUI has no {kind}")
        lines = told(client, patched(14, kind, **inputs)).splitlines()
        assert lines[-1] == f"{BY_BLOCKS}: Expected no patches in the network, found {found}."
        assert any("calls of WanAttentionBlock by the inductor engine" in line for line in lines)

    @pytest.mark.torture
    @pytest.mark.parametrize("behind", [False, True])
    def test_a_compiler_of_the_cores(self, client: ComfyClient, behind: bool) -> None:
        """Its graph is the one that runs, whichever of the two nodes comes first."""
        prompt = wan(A14B, next(FRESH))
        prompt["30"] = node("TorchCompileModel", model=[COMPILED if behind else LOADER, 0], backend="inductor")
        changes = {SAMPLER: {"model": ["30", 0]}} if behind else {COMPILED: {"model": ["30", 0]}}
        calls, reason = told(client, changed(prompt, changes)).splitlines()
        assert calls.endswith(" calls by the network as it is")
        assert reason.startswith(f"{AS_IT_IS}: torch.compile is on this model too, and compiles it")

    @pytest.mark.slow  # the other branch is called alone, by an engine of its own
    def test_a_control(self, client: ComfyClient) -> None:
        prompt = wan(A14B, 16)
        prompt["40"] = node("ProbeControl", conditioning=[POSITIVE, 0])
        prompt = changed(prompt, {VIDEO: {"positive": ["40", 0]}})
        assert f"{BY_BLOCKS}: Expected no control, found one, such as a ControlNet's." in told(client, prompt)

    @pytest.mark.slow  # the other branch is called alone, by an engine of its own
    def test_a_hook_on_the_weights(self, client: ComfyClient) -> None:
        properties = {"hooks": ["40", 0], "strength": 1.0, "set_cond_area": "default"}
        prompt = wan(A14B, 17)
        prompt["40"] = node("CreateHookLoraModelOnly", **LORA)
        prompt["41"] = node("ConditioningSetProperties", cond_NEW=[POSITIVE, 0], **properties)
        prompt = changed(prompt, {VIDEO: {"positive": ["41", 0]}})
        alone = changed(prompt, {DIFFERENCE: {"a": [PLAIN_FRAMES, 0]}})
        for name in (COMPILED, SAMPLER, FRAMES):
            del alone[name]
        without = client.run(alone)
        if without.status == "error":
            pytest.skip(f"this ComfyUI cannot run its own graph here: {without.error}")
        assert f"{BY_BLOCKS}: Expected no hooks on the weights, found some." in told(client, prompt)

    def test_no_engine_where_none_shall_be_built(self, client: ComfyClient) -> None:
        odd = {VIDEO: {"width": 48, "height": 48}}
        said = told(client, changed(wan(A14B, on_missing="eager"), odd))
        assert said.startswith(NONE_BY_THE_ENGINE) and "There is no engine for network in " in said
        stopped = failure(client, changed(wan(A14B, on_missing="stop"), odd))
        assert "MissingEngineError: There is no engine for network in " in stopped
        assert told(client, wan(A14B, backend="eager")) == NONE_BY_THE_ENGINE, "eager is what it says"
