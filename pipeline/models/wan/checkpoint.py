"""Content of a checkpoint of Wan: its parts, the checks that they fit together, its networks and their sizes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ....common.errors import CheckpointError
from ....common.shapes import DimRange, ShapeProfile
from ....common.spec import Guidance, Scope, TensorSpec
from ...fused.kernels import flash_attention
from ..checkpoints.diffusers_folder import BlockList
from ..diffusers_family import DiffusersFamily, Network
from ..latent_space import LatentSpace
from ..model_networks import first_blocks
from .causal_vae import TIME_FACTOR
from .lora_names import picture_part, published
from .networks import FLASH, FP8_PRODUCTS, PATCH, REWRITES, ROUNDINGS, DenoiserNetwork
from .text_encoder import BLOCKS, TOKENS, text_network
from .vae import PLANE, vae_networks

if TYPE_CHECKING:
    from typing_extensions import Self

TIMESTEPS = (0.0, 1000.0)
MAX_FRAMES = 161
"""Ten seconds at the 16 frames a second that 2.1 and A14B were trained for; 121 of TI2V's 24 are published."""
TEXT_SCRATCH_BYTES = 1 << 30
VAE_CACHE_BYTES, VAE_FRAME_BYTES = 9500, 1300
"""Scratch bytes in half precision for each pixel of a frame: the decoder's caches before and after a call, and the
addition of each frame of a call, as counted over 2.1's layers in eager PyTorch."""
PARTS = {"core": "transformer", "core_late": "transformer_2"}
"""The part that each denoiser comes from."""
SETTINGS: dict[str, dict[str, type]] = {
    "transformer": {
        "in_channels": int,
        "out_channels": int,
        "num_attention_heads": int,
        "attention_head_dim": int,
        "ffn_dim": int,
        "text_dim": int,
        "patch_size": list,
    },
    "vae": {"z_dim": int, "latents_mean": list, "latents_std": list},
    "text_encoder": {"vocab_size": int, "d_model": int},
}
LAYOUT: dict[str, tuple[str, ...]] = {
    "transformer": ("WanTransformer3DModel",),
    "vae": ("AutoencoderKLWan",),
    "text_encoder": ("UMT5EncoderModel",),
    "tokenizer": ("T5TokenizerFast", "T5Tokenizer"),
    "scheduler": ("UniPCMultistepScheduler", "FlowMatchEulerDiscreteScheduler", "DPMSolverMultistepScheduler"),
}


class WanCheckpoint(DiffusersFamily):
    """The networks of a Wan."""

    latent: ClassVar[LatentSpace] = LatentSpace(16, 8, TIME_FACTOR, 8 * PATCH, MAX_FRAMES, "Wan21", video=True)
    min_latent_side: ClassVar[int] = 2 * PATCH
    not_encoding: ClassVar[frozenset[str]] = frozenset({"scheduler", *PARTS.values()})
    layout: ClassVar[Mapping[str, tuple[str, ...]]] = LAYOUT
    settings: ClassVar[Mapping[str, Mapping[str, type]]] = SETTINGS
    known_rewrites: ClassVar[Mapping[str, tuple[str, ...]]] = dict.fromkeys(PARTS, REWRITES)
    bf16_rewrites: ClassVar[frozenset[str]] = frozenset({FLASH})
    known_roundings: ClassVar[tuple[str, ...]] = ROUNDINGS
    block_lists: ClassVar[Mapping[str, BlockList]] = {
        "text_encoder": BLOCKS,
        **dict.fromkeys(PARTS, BlockList(DenoiserNetwork.repeated, "num_layers")),
    }
    rewriting_backends: ClassVar[frozenset[str]] = frozenset({"inductor"})

    @classmethod
    def open(cls, folder: Path) -> Self:
        model = super().open(folder)
        model.check()
        return model

    def check(self) -> None:
        """Raises CheckpointError when the parts' configurations do not go together."""
        vae, latent = self.config("vae"), self.latent.channels
        sizes = (vae["z_dim"], len(vae["latents_mean"]), len(vae["latents_std"]))
        if set(sizes) != {latent}:
            path = self.checkpoint.parts["vae"].config_path
            raise CheckpointError(f"{path}: expected z_dim, latents_mean and latents_std of {latent}, found {sizes}.")
        for name in self.denoisers:
            part = self.checkpoint.parts[PARTS[name]]
            if part.config.get("pos_embed_seq_len"):
                raise CheckpointError(
                    f"{part.config_path} is of a model between a first and a last picture, which is not served: "
                    f"expected no pos_embed_seq_len, found {part.config['pos_embed_seq_len']!r:.80}."
                )
            found = (part.config["in_channels"], part.config["out_channels"])
            if found != (latent + self.condition_channels, latent):
                raise CheckpointError(
                    f"{part.config_path}: expected in_channels {latent + self.condition_channels} and out_channels "
                    f"{latent} for {self.title}, found {found[0]} and {found[1]}."
                )

    def lora_names(self, module: str) -> tuple[str, ...]:
        return (published(module),)

    def lora_lacking(self, module: str) -> str | None:
        return picture_part(module)

    @property
    def condition_channels(self) -> int:
        """The channels beside the noise: a mask over the frames of a latent frame, and latents."""
        return self.latent.time_factor + self.latent.channels

    def networks(self) -> Mapping[str, Network]:
        denoisers = {name: self._denoiser(PARTS[name]) for name in self.denoisers}
        text = text_network(self.config("text_encoder"))
        return {"text_encoder": text, **vae_networks(self.config("vae")), **denoisers}

    def _denoiser(self, part: str) -> Network:
        volume = ("batch", self.latent.channels, "frames", *PLANE)
        inputs = (
            TensorSpec("sample", volume),
            TensorSpec("timestep", ("batch",), "float32", span=TIMESTEPS),
            TensorSpec(
                "text_states",
                ("batch", TOKENS, self.config(part)["text_dim"]),
                scope=Scope.CLIP,
                guidance=Guidance.PER_BRANCH,
            ),
            *self.picture_inputs(),
        )
        return Network(
            part,
            DenoiserNetwork,
            inputs,
            (TensorSpec("prediction", volume),),
            ("batch", "frames", *PLANE),
            rewritten=DenoiserNetwork,
        )

    def rewrites(self, component: str, backend: str) -> tuple[str, ...]:
        found = super().rewrites(component, backend)
        return tuple(name for name in found if name != FLASH or flash_attention.is_there())

    def roundings(self, component: str, precision: str, backend: str) -> tuple[str, ...]:
        if precision != "fp8" or component not in PARTS or backend not in self.rewriting_backends:
            return ()
        return ROUNDINGS if flash_attention.is_there() else (FP8_PRODUCTS,)

    def size_bytes(self, component: str, precision: str, rewrites: tuple[str, ...] = ()) -> int:
        whole_bytes = super().size_bytes(component, precision)
        if FP8_PRODUCTS not in rewrites:
            return whole_bytes
        around_bytes = first_blocks(self, component, 0).size_bytes(component, precision)
        width = 4 if precision == "fp32" else 2
        return around_bytes + (whole_bytes - around_bytes) // width

    def picture_inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs of the denoiser that come from the picture, beside the sample."""
        return (TensorSpec("condition", ("batch", self.condition_channels, "frames", *PLANE), scope=Scope.CLIP),)

    @property
    def denoiser_side_multiple(self) -> int:
        return PATCH

    def _limits(self, ranges: tuple[str, ...], side_multiple: int) -> ShapeProfile:
        limits = super()._limits(ranges, side_multiple).ranges
        # A frame of latents is four of the clip, which are work enough for a GPU.
        return ShapeProfile({**limits, "chunk": DimRange(1, 1, 4)} if "chunk" in limits else limits)

    def scratch_bytes(self, component: str, sizes: Mapping[str, int], precision: str, backend: str = "eager") -> int:
        width, places = 2 if precision == "fp32" else 1, sizes.get("latent_height", 8) * sizes.get("latent_width", 8)
        if component in self.denoisers:
            config = self.config(PARTS[component])
            inner = config["num_attention_heads"] * config["attention_head_dim"]
            # Of a token: the state, queries, keys and values in half precision, norms in full, the feed-forward twice.
            token_bytes = 24 * inner + 4 * config["ffn_dim"]
            return width * token_bytes * sizes["batch"] * sizes["frames"] * places // PATCH**2
        if component.startswith("vae"):
            pixel_bytes = VAE_CACHE_BYTES + VAE_FRAME_BYTES * self.latent.time_factor * sizes.get("chunk", 1)
            return width * pixel_bytes * places * self.latent.factor**2
        return TEXT_SCRATCH_BYTES
