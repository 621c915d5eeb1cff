"""The core's graphs for other video models than those of `test_compile_model`: latents of both ways, compared."""

from i2v_tensorrt.tests.live.graphs import Prompt, changed, node
from i2v_tensorrt.tests.live.test_compile_model import (
    DIFFERENCE,
    FRAMES,
    NEGATIVE,
    PLAIN_FRAMES,
    PLAIN_SAMPLER,
    POSITIVE,
    SAMPLER,
    VAE,
    VIDEO,
    wan,
)


def ti2v(name: str, seed: int = 1) -> Prompt:
    """The 5B keeps its first frame: it is given a time for each. No small VAE decodes its latents of 48 channels."""
    prompt = by_latents(wan(name, seed))
    prompt["21"] = node("SolidMask", value=0.5, width=8, height=8)
    prompt["22"] = node("SetLatentNoiseMask", samples=[VIDEO, 2], mask=["21", 0])
    masked = {"latent_image": ["22", 0]}
    return changed(prompt, {VIDEO: {"start_image": None}, SAMPLER: masked, PLAIN_SAMPLER: masked})


def ltxv(name: str, seed: int = 1) -> Prompt:
    """LTXV: three latent frames of 4x4."""
    latent = node("EmptyLTXVLatentVideo", width=128, height=128, length=17, batch_size=1)
    return _by_text(name, seed, latent, tokens=12, width=4096, padding=3)


def hunyuan(name: str, seed: int = 1) -> Prompt:
    """HunyuanVideo: three latent frames of 8x8, and a text as one vector beside its tokens."""
    latent = node("EmptyHunyuanLatentVideo", width=64, height=64, length=9, batch_size=1)
    return _by_text(name, seed, latent, tokens=12, width=64, pooled=768)


def sd3(name: str, seed: int = 1) -> Prompt:
    """Stable Diffusion 3: one picture of 8x8 latents, and a text as one vector beside its tokens."""
    latent = node("EmptySD3LatentImage", width=64, height=64, batch_size=1)
    return _by_text(name, seed, latent, tokens=12, width=64, pooled=64)


def by_latents(prompt: Prompt) -> Prompt:
    """The graph with its latents compared in place of its frames."""
    prompt = {name: each for name, each in prompt.items() if name != "20"}
    prompt[FRAMES] = node("ProbeLatents", samples=[SAMPLER, 0])
    prompt[PLAIN_FRAMES] = node("ProbeLatents", samples=[PLAIN_SAMPLER, 0])
    return {**prompt, DIFFERENCE: node("ProbeDifference", a=[FRAMES, 0], b=[PLAIN_FRAMES, 0])}


def _by_text(name: str, seed: int, latent: Prompt, **conditioning: int) -> Prompt:
    """A graph from text alone, whatever the text: random conditioning, an empty latent, both samplers."""
    prompt = {key: each for key, each in by_latents(wan(name, seed)).items() if key not in (VAE, VIDEO)}
    prompt[VIDEO] = latent
    for number, key in enumerate((POSITIVE, NEGATIVE), 1):
        prompt[key] = node("ProbeConditioning", seed=number, **conditioning)
    links = {"positive": [POSITIVE, 0], "negative": [NEGATIVE, 0], "latent_image": [VIDEO, 0]}
    return changed(prompt, {SAMPLER: links, PLAIN_SAMPLER: links})
