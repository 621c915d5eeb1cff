"""Content of a checkpoint of DynamiCrafter: its parts, its networks and their tensors."""

from __future__ import annotations

from ....common.spec import Guidance, Scope, TensorSpec
from ..checkpoints.diffusers_folder import Checkpoint
from ..diffusers_family import Network
from ..fused_vae import FusedVaeDecoder
from ..parts import VaeDecoder, VaeEncoder
from .fused import FusedDenoiser
from .networks import DenoiserNetwork, ImageProjection, VisionEncoder, text_encoder
from .tooncrafter import REFERENCE_NAMES, REFERENCES, ReferenceDecoder, ReferenceEncoder

LAYOUT: dict[str, tuple[str, ...]] = {
    "unet": ("DynamiCrafterUNet",),
    "image_projection": ("DynamiCrafterImageProjection",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "image_encoder": ("CLIPVisionModel", "CLIPVisionModelWithProjection"),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "scheduler": ("DDIMScheduler",),
}
SETTINGS: dict[str, dict[str, type]] = {
    "unet": {"in_channels": int, "cross_attention_dim": int, "block_out_channels": list},
    "image_projection": {"embed_dims": int, "output_dims": int, "num_queries": int},
    "vae": {"scaling_factor": float},
    "text_encoder": {"max_position_embeddings": int, "vocab_size": int},
    "image_encoder": {"image_size": int, "patch_size": int, "hidden_size": int},
}
REFERENCE_VAE = "ToonCrafterVae"
TRAIN_TIMESTEPS, MAX_FS = 1000, 120
PLANE = ("latent_height", "latent_width")


def networks_of(checkpoint: Checkpoint, frames: int) -> dict[str, Network]:
    """Every component of the family, for clips of that many frames."""
    return {**_encoders(checkpoint), **_vae(), "core": _denoiser(checkpoint, frames)}


def _encoders(checkpoint: Checkpoint) -> dict[str, Network]:
    names = ("text_encoder", "image_encoder", "image_projection")
    text, vision, projection = (checkpoint.parts[name].config for name in names)
    clip, branch, side = Scope.CLIP, Guidance.PER_BRANCH, vision["image_size"]
    length, width = text["max_position_embeddings"], projection["output_dims"]
    ids = TensorSpec("input_ids", ("batch", length), "int64", clip, branch, (0, text["vocab_size"]))
    text_states = TensorSpec("text_states", ("batch", length, width), scope=clip, guidance=branch)
    pixels = TensorSpec("pixel_values", ("batch", 3, side, side), scope=clip, guidance=branch)
    patches = (side // vision["patch_size"]) ** 2 + 1
    states = TensorSpec("image_states", ("batch", patches, vision["hidden_size"]), scope=clip, guidance=branch)
    tokens = TensorSpec("image_tokens", ("batch", projection["num_queries"], width), scope=clip, guidance=branch)
    batch = ("batch",)
    return {
        "text_encoder": Network("text_encoder", text_encoder, (ids,), (text_states,), batch),
        "image_encoder": Network("image_encoder", VisionEncoder, (pixels,), (states,), batch),
        "image_projection": Network("image_projection", ImageProjection, (states,), (tokens,), batch, exportable=False),
    }


def _vae() -> dict[str, Network]:
    picture, images = (TensorSpec("image", (n, 3, *_plane(8)), scope=Scope.CLIP) for n in (1, "chunk"))
    first, latents = (TensorSpec("latents", (n, 4, *PLANE), scope=Scope.CLIP) for n in (1, "chunk"))
    return {
        "vae_encoder": Network("vae", VaeEncoder, (picture,), (first,), PLANE),
        "vae_decoder": Network("vae", VaeDecoder, (latents,), (images,), ("chunk", *PLANE), rewritten=FusedVaeDecoder),
    }


def reference_vae(checkpoint: Checkpoint) -> dict[str, Network]:
    """ToonCrafter's encoder of both pictures, which gives references too, and its decoder, which sees them."""
    clip, channels = Scope.CLIP, checkpoint.parts["vae"].config["block_out_channels"]
    widths, factors = (*channels, channels[0]), (8, 4, 2, 1, 8)
    references = tuple(
        TensorSpec(name, (REFERENCES, width, *_plane(factor)), scope=clip)
        for name, width, factor in zip(REFERENCE_NAMES, widths, factors, strict=True)
    )
    pictures, images = (TensorSpec("image", (n, 3, *_plane(8)), scope=clip) for n in (REFERENCES, "chunk"))
    ends, latents = (TensorSpec("latents", (n, 4, *PLANE), scope=clip) for n in (REFERENCES, "chunk"))
    return {
        "vae_encoder": Network("vae", ReferenceEncoder, (pictures,), (ends, *references), PLANE),
        "vae_decoder": Network("vae", ReferenceDecoder, (latents, *references), (images,), ("chunk", *PLANE)),
    }


def _plane(factor: int) -> tuple[str, ...]:
    """Height and width of a plane with so many places for each latent."""
    return tuple(name if factor == 1 else f"{name}*{factor}" for name in PLANE)


def _denoiser(checkpoint: Checkpoint, frames: int) -> Network:
    length = checkpoint.parts["text_encoder"].config["max_position_embeddings"]
    width, tokens = checkpoint.parts["unet"].config["cross_attention_dim"], image_tokens(checkpoint, frames)
    clip, branch, volume = Scope.CLIP, Guidance.PER_BRANCH, ("batch", "frames", 4, *PLANE)
    inputs = (
        TensorSpec("sample", volume),
        TensorSpec("timestep", ("batch",), "float32", span=(0, TRAIN_TIMESTEPS)),
        TensorSpec("image_latents", volume, scope=clip),
        TensorSpec("text_states", ("batch", length, width), scope=clip, guidance=branch),
        TensorSpec("image_tokens", ("batch", "frames", tokens, width), scope=clip, guidance=branch),
        TensorSpec("fs", ("batch",), "float32", clip, span=(1, MAX_FS)),
    )
    return Network(
        "unet",
        lambda stored: DenoiserNetwork(stored, tokens),
        inputs,
        (TensorSpec("prediction", volume),),
        ("batch", "frames", *PLANE),
        rewritten=FusedDenoiser,
    )


def image_tokens(checkpoint: Checkpoint, frames: int) -> int:
    """Tokens of the picture that each of the frames sees."""
    return checkpoint.parts["image_projection"].config["num_queries"] // frames
