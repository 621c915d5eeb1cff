"""DynamiCrafter from diffusers' own modules: its UNet's with IP-Adapter processors, its perceiver, and DDIM by formula.

Diffusers has no pipeline of it. Nothing here is shared with the pack but the folder that the weights come from, so the
pack's networks and its schedule are compared with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from PIL import Image

FRAMES = 16
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).reshape(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).reshape(3, 1, 1)
RESCALED = 400
PROMPT_TOKENS = 77


def config_of(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """A part's configuration."""
    return json.loads((folder / name).read_text("utf-8"))


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """A part's tensors, from its one file."""
    from safetensors.torch import load_file

    return load_file(folder / "diffusion_pytorch_model.safetensors")


class ReferenceUNet(torch.nn.Module):
    """UNet3DConditionModel with an embedding of fs, and the picture's tokens of each frame through IP-Adapter."""

    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        from diffusers import UNet3DConditionModel
        from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
        from diffusers.models.embeddings import TimestepEmbedding

        channels, width, state = config["block_out_channels"], config["cross_attention_dim"], dict(weights)
        with torch.device("meta"):
            self.unet: Any = UNet3DConditionModel(
                in_channels=8,
                block_out_channels=tuple(channels),
                cross_attention_dim=width,
                attention_head_dim=config["attention_head_dim"],
                norm_num_groups=config["norm_num_groups"],
            )
            self.fps = TimestepEmbedding(channels[0], 4 * channels[0])
            layers = {name: layer for name, layer in self.unet.named_modules() if f"{name}.to_k_ip.weight" in state}
            for layer in layers.values():
                layer.set_processor(IPAdapterAttnProcessor2_0(layer.inner_dim, width, num_tokens=(1,)))
        fps = {name[14:]: state.pop(name) for name in list(state) if name.startswith("fps_embedd")}
        self.fps.load_state_dict(fps, assign=True)
        for name in layers:
            for part in ("to_k_ip", "to_v_ip"):
                state[f"{name}.processor.{part}.0.weight"] = state.pop(f"{name}.{part}.weight")
        self.unet.load_state_dict(state, assign=True)
        self.eval().requires_grad_(False)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.unet.conv_in.weight.dtype

    def forward(
        self, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor, tokens: torch.Tensor, fs: torch.Tensor
    ) -> torch.Tensor:
        """From x [clips, 8, frames, h, w], t and fs [clips], text [clips, 77, c] and tokens [clips, 16 * n, c] to the
        prediction [clips, 4, frames, h, w]."""
        unet, (clips, _, frames, *plane) = self.unet, x.shape
        emb = unet.time_embedding(unet.time_proj(t).to(x.dtype)) + self.fps(unet.time_proj(fs).to(x.dtype))
        emb = emb.repeat_interleave(frames, dim=0)
        picture = tokens.reshape(clips * frames, 1, -1, tokens.shape[-1])
        context = (text.repeat_interleave(frames, dim=0), [picture[:, 0]])
        h = unet.conv_in(x.movedim(2, 1).reshape(clips * frames, -1, *plane))
        h = unet.transformer_in(h, num_frames=frames, return_dict=False)[0]
        skips = [h]
        for block in unet.down_blocks:
            crossed = {"encoder_hidden_states": context} if hasattr(block, "attentions") else {}
            h, made = block(hidden_states=h, temb=emb, num_frames=frames, **crossed)
            skips += made
        h = unet.mid_block(h, emb, encoder_hidden_states=context, num_frames=frames)
        for block in unet.up_blocks:
            crossed = {"encoder_hidden_states": context} if hasattr(block, "attentions") else {}
            count = len(block.resnets)
            used, skips = tuple(skips[-count:]), skips[:-count]
            h = block(hidden_states=h, temb=emb, res_hidden_states_tuple=used, num_frames=frames, **crossed)
        h = unet.conv_out(torch.nn.functional.silu(unet.conv_norm_out(h)))
        return h.reshape(clips, frames, -1, *plane).movedim(1, 2)

    def predict(self, given: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The prediction [branches, frames, 4, h, w] for the inputs of the pack's denoiser."""
        x = torch.cat([given["sample"], given["image_latents"]], dim=2).transpose(1, 2)
        tokens = given["image_tokens"].flatten(1, 2)
        return self(x, given["timestep"], given["text_states"], tokens, given["fs"]).transpose(1, 2)


def reference_unet(folder: Path) -> ReferenceUNet:
    """The UNet of a part's folder."""
    return ReferenceUNet(config_of(folder), weights_of(folder))


def reference_projection(folder: Path) -> torch.nn.Module:
    """Diffusers' perceiver with the weights of a part's folder."""
    return _projection(config_of(folder), weights_of(folder))


def _projection(config: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> torch.nn.Module:
    from diffusers.models.embeddings import IPAdapterPlusImageProjection

    made = IPAdapterPlusImageProjection(**{name: value for name, value in config.items() if not name.startswith("_")})
    made.load_state_dict(dict(weights))
    return made.eval().requires_grad_(False)


class ReferenceSchedule:
    """DDIM as the published code steps: each timestep's next one of its own list, the root never of less than 0."""

    def __init__(self, config: Mapping[str, Any], steps: int) -> None:
        self.config = config
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        signal = (1 - betas).cumprod(0).sqrt()
        if config.get("rescale_betas_zero_snr"):
            signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
        self.alphas = signal**2
        if config["timestep_spacing"] == "trailing":
            self.timesteps = [round(1000 - 1000 / steps * n) - 1 for n in range(steps)]
        else:
            self.timesteps = [n * (1000 // steps) + 1 for n in reversed(range(steps))]

    def scale(self, t: int) -> float:
        """The dynamic rescale's factor at a timestep."""
        base = self.config.get("dynamic_rescale_base")
        return 1.0 if base is None else float(torch.linspace(1, base, RESCALED, dtype=torch.float64)[min(t, 399)])

    def step(self, number: int, x: torch.Tensor, prediction: torch.Tensor, eta: float, noise: Any) -> torch.Tensor:
        """Latents, float32, after the step of that number; `noise` is called for what `eta` adds."""
        t, last = self.timesteps[number], number + 1 == len(self.timesteps)
        a, b = (self.alphas[at].to(x.device) for at in (t, 0 if last else self.timesteps[number + 1]))
        if self.config["prediction_type"] == "v_prediction":
            clean = a.sqrt() * x - (1 - a).sqrt() * prediction
            spread = a.sqrt() * prediction + (1 - a).sqrt() * x
        else:
            clean, spread = (x - (1 - a).sqrt() * prediction) / a.sqrt(), prediction
        sigma = eta * ((1 - b) / (1 - a) * (1 - a / b)).sqrt()
        ratio = 1.0 if last else self.scale(self.timesteps[number + 1]) / self.scale(t)
        direction = (1 - b - sigma**2).clamp(min=0).sqrt() * spread
        return (b.sqrt() * clean * ratio + direction + (sigma * noise() if eta else 0)).float()


class ReferencePipeline:
    """A picture and a prompt to latents or frames; called as diffusers' pipelines are."""

    def __init__(self, networks: Mapping[str, Any], tokenizer: Any, scheduler: Mapping[str, Any]) -> None:
        """Takes unet, vae, text_encoder, image_encoder and image_projection."""
        self.unet, self.vae = networks["unet"], networks["vae"]
        self.text_encoder, self.image_encoder = networks["text_encoder"], networks["image_encoder"]
        self.image_projection = networks["image_projection"]
        self.tokenizer, self.scheduler = tokenizer, scheduler

    def set_progress_bar_config(self, **options: Any) -> None:
        """Does nothing: there is no bar."""

    @torch.no_grad()
    def __call__(self, **asked: Any) -> Any:
        """The clip as `frames`; `decode_chunk_size` frames are decoded at once, all without it."""
        size = (asked["width"], asked["height"])
        images = [
            pixels(picture, size, self.vae.device, self.vae.dtype)
            for picture in (asked["image"], asked.get("last_image"))
            if picture is not None
        ]
        text = torch.cat([self._text(asked[name]) for name in ("negative_prompt", "prompt")])
        tokens = self._tokens(images[0])
        latents = [self._latents(image) for image in images]
        known = latents[0][:, :, None].repeat(1, 1, FRAMES, 1, 1)
        if len(latents) == 2:
            known[:, :, 1:-1], known[:, :, -1] = 0, latents[1]
        generator = asked.get("generator")
        start = asked.get("latents")
        x = torch.randn(known.shape, generator=generator).to(known) if start is None else start.float()
        schedule = ReferenceSchedule(self.scheduler, asked["num_inference_steps"])
        for number, t in enumerate(schedule.timesteps):
            prediction = self._predict(x, known, t, text, tokens, asked["fs"], asked["guidance_scale"])
            x = schedule.step(number, x, prediction, asked["eta"], partial(noise_like, x, generator))
        if asked["output_type"] == "latent":
            return SimpleNamespace(frames=x)
        return SimpleNamespace(frames=self.decode_latents(x, asked.get("decode_chunk_size") or FRAMES)[None])

    def decode_latents(self, latents: torch.Tensor, chunk: int) -> torch.Tensor:
        """Frames [frames, 3, height, width] in 0..1 of scaled latents [1, 4, frames, h, w]."""
        unscaled = (latents[0].transpose(0, 1) / self.vae.config.scaling_factor).to(self.vae.dtype)
        frames = torch.cat([self.vae.decode(part).sample for part in unscaled.split(chunk)])
        return (frames / 2 + 0.5).clamp(0, 1)

    def _predict(
        self,
        x: torch.Tensor,
        known: torch.Tensor,
        t: int,
        text: torch.Tensor,
        tokens: torch.Tensor,
        fs: int,
        guidance: float,
    ) -> torch.Tensor:
        whole = torch.cat([x, known], dim=1).to(self.unet.dtype)
        times = (torch.tensor([float(value)], device=x.device) for value in (t, fs))
        time, speed = times
        found = [
            self.unet(whole, time, text[n : n + 1], tokens[n : n + 1], speed).float()
            for n in ((0, 1) if guidance > 1 else (1,))
        ]
        if len(found) == 1:
            return found[0]
        guided = found[0] + guidance * (found[1] - found[0])
        share = self.scheduler.get("guidance_rescale", 0.0)
        return share * guided * found[1].std() / guided.std() + (1 - share) * guided

    def _text(self, prompt: str) -> torch.Tensor:
        ids = self.tokenizer(prompt, truncation=True, max_length=PROMPT_TOKENS).input_ids
        padded = torch.tensor([ids + [0] * (PROMPT_TOKENS - len(ids))], device=self.text_encoder.device)
        states = self.text_encoder(padded, output_hidden_states=True).hidden_states[-2]
        return getattr(self.text_encoder, "text_model", self.text_encoder).final_layer_norm(states)

    def _tokens(self, image: torch.Tensor) -> torch.Tensor:
        from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import _resize_with_antialiasing

        side, dtype = self.image_encoder.config.image_size, self.image_encoder.dtype
        both = [torch.zeros_like(image, dtype=torch.float32), image.float()]
        mean, std = MEAN.to(image.device), STD.to(image.device)
        seen = [(_resize_with_antialiasing(each, (side, side)) / 2 + 0.5 - mean) / std for each in both]
        return self.image_projection(self.image_encoder(torch.cat(seen).to(dtype)).last_hidden_state)

    def _latents(self, image: torch.Tensor) -> torch.Tensor:
        return self.vae.encode(image).latent_dist.mean.float() * self.vae.config.scaling_factor


def reference_pipeline(folder: Path, vae: Any = None) -> ReferencePipeline:
    """The pipeline of a checkpoint in the pack's layout, in fp32 on the CPU; `vae` stands in for diffusers' class."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModel

    networks: dict[str, Any] = {
        "unet": reference_unet(folder / "unet"),
        "text_encoder": CLIPTextModel.from_pretrained(folder / "text_encoder"),
        "image_encoder": CLIPVisionModel.from_pretrained(folder / "image_encoder"),
        "image_projection": reference_projection(folder / "image_projection"),
    }
    networks = {name: network.eval() for name, network in networks.items()}
    networks["vae"] = vae or AutoencoderKL.from_pretrained(folder / "vae", low_cpu_mem_usage=False).eval()
    scheduler = config_of(folder / "scheduler", "scheduler_config.json")
    return ReferencePipeline(networks, CLIPTokenizer.from_pretrained(folder / "tokenizer"), scheduler)


def published_pipeline(networks: Mapping[str, Any], folder: Path) -> ReferencePipeline:
    """The pipeline over networks that are loaded already, under the names of their parts, as diffusers' classes."""
    from transformers import CLIPTokenizer

    unet, projection = networks["unet"], networks["image_projection"]
    own = {
        "unet": ReferenceUNet(unet.config, unet.state_dict()),
        "image_projection": _projection(projection.config, projection.state_dict()).to(unet.device, unet.dtype),
    }
    scheduler = config_of(folder / "scheduler", "scheduler_config.json")
    return ReferencePipeline({**networks, **own}, CLIPTokenizer.from_pretrained(folder / "tokenizer"), scheduler)


def pixels(picture: Image.Image, size: tuple[int, int], device: Any, dtype: torch.dtype) -> torch.Tensor:
    """The middle of a picture whose sides have the clip's ratio already, [1, 3, h, w] in -1..1."""
    import numpy
    from PIL import Image

    scaled = numpy.asarray(picture.resize(size, Image.Resampling.BILINEAR), dtype=numpy.float32)
    return torch.from_numpy(scaled / 255 * 2 - 1).permute(2, 0, 1)[None].to(device, dtype)


def noise_like(x: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """Noise drawn frame by frame, as the pack's schedulers draw: the published code's order is another."""
    return torch.randn(x[0].transpose(0, 1).shape, generator=generator).transpose(0, 1)[None].to(x)
