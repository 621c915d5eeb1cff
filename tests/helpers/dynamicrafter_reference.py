"""DynamiCrafter from diffusers' own modules: its UNet's with IP-Adapter processors, its perceiver, and DDIM by formula.

Diffusers has no pipeline of it. Nothing here is shared with the pack but the folder that the weights come from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet3DConditionModel
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from diffusers.models.embeddings import IPAdapterPlusImageProjection, TimestepEmbedding
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModel

FRAMES = 16
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).reshape(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).reshape(3, 1, 1)
RESCALED = 400


def config_of(folder: Path, name: str = "config.json") -> dict[str, Any]:
    return json.loads((folder / name).read_text("utf-8"))


class ReferenceUNet:
    """UNet3DConditionModel with an embedding of fs, and the picture's tokens of each frame through IP-Adapter."""

    def __init__(self, folder: Path, weights: Mapping[str, torch.Tensor] | None = None) -> None:
        config = config_of(folder)
        channels, width = config["block_out_channels"], config["cross_attention_dim"]
        self.unet: Any = UNet3DConditionModel(
            in_channels=8,
            block_out_channels=tuple(channels),
            cross_attention_dim=width,
            attention_head_dim=config["attention_head_dim"],
            norm_num_groups=config["norm_num_groups"],
        ).eval()
        self.fps = TimestepEmbedding(channels[0], 4 * channels[0])
        state = dict(weights or load_file(folder / "diffusion_pytorch_model.safetensors"))
        self.fps.load_state_dict({name[14:]: state.pop(name) for name in list(state) if name.startswith("fps_embedd")})
        picture = {name: state.pop(name) for name in list(state) if "_ip." in name}
        self.unet.load_state_dict(state)
        layer: Any
        for name, layer in self.unet.named_modules():
            if f"{name}.to_k_ip.weight" in picture:
                processor = IPAdapterAttnProcessor2_0(layer.inner_dim, width, num_tokens=(1,))
                for part in ("to_k_ip", "to_v_ip"):
                    getattr(processor, part)[0].weight.data = picture.pop(f"{name}.{part}.weight")
                layer.set_processor(processor)
        assert not picture, "every picture weight has its layer"

    def __call__(
        self, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor, tokens: torch.Tensor, fs: torch.Tensor
    ) -> torch.Tensor:
        """From x [clips, 8, frames, h, w], text [clips, 77, c] and tokens [clips, 16 * n, c]."""
        unet, (clips, _, frames, *plane) = self.unet, x.shape
        emb = unet.time_embedding(unet.time_proj(t)) + self.fps(unet.time_proj(fs))
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


def reference_projection(folder: Path) -> IPAdapterPlusImageProjection:
    config = {name: value for name, value in config_of(folder).items() if not name.startswith("_")}
    made = IPAdapterPlusImageProjection(**config).eval()
    made.load_state_dict(load_file(folder / "diffusion_pytorch_model.safetensors"))
    return made


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
        base = self.config.get("dynamic_rescale_base")
        return 1.0 if base is None else float(torch.linspace(1, base, RESCALED, dtype=torch.float64)[min(t, 399)])

    def step(self, number: int, x: torch.Tensor, prediction: torch.Tensor, eta: float, noise: Any) -> torch.Tensor:
        t, last = self.timesteps[number], number + 1 == len(self.timesteps)
        a, b = self.alphas[t], self.alphas[0 if last else self.timesteps[number + 1]]
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

    def __init__(self, folder: Path) -> None:
        self.vae: Any = AutoencoderKL.from_pretrained(folder / "vae", low_cpu_mem_usage=False).eval()
        self.text = CLIPTextModel.from_pretrained(folder / "text_encoder").eval()
        self.vision = CLIPVisionModel.from_pretrained(folder / "image_encoder").eval()
        self.tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        self.projection = reference_projection(folder / "image_projection")
        self.unet = ReferenceUNet(folder / "unet")
        self.scheduler = config_of(folder / "scheduler", "scheduler_config.json")

    def set_progress_bar_config(self, **options: Any) -> None:
        """There is no bar."""

    @torch.no_grad()
    def __call__(self, **asked: Any) -> Any:
        size = (asked["width"], asked["height"])
        images = [pixels(picture, size) for picture in (asked["image"], asked.get("last_image")) if picture is not None]
        text = torch.cat([self._text(asked[name]) for name in ("negative_prompt", "prompt")])
        tokens = self._tokens(images[0])
        latents = [self._latents(image) for image in images]
        known = latents[0][:, :, None].repeat(1, 1, FRAMES, 1, 1)
        if len(latents) == 2:
            known[:, :, 1:-1], known[:, :, -1] = 0, latents[1]
        generator = asked["generator"]
        x = torch.randn(known.shape, generator=generator)
        schedule = ReferenceSchedule(self.scheduler, asked["num_inference_steps"])
        for number, t in enumerate(schedule.timesteps):
            prediction = self._predict(x, known, t, text, tokens, asked["fs"], asked["guidance_scale"])
            x = schedule.step(number, x, prediction, asked["eta"], partial(noise_like, x, generator))
        if asked["output_type"] == "latent":
            return SimpleNamespace(frames=x)
        frames = self.vae.decode(x[0].transpose(0, 1) / self.vae.config.scaling_factor).sample
        return SimpleNamespace(frames=(frames / 2 + 0.5).clamp(0, 1)[None])

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
        whole = torch.cat([x, known], dim=1)
        found = [
            self.unet(whole, torch.tensor([float(t)]), text[n : n + 1], tokens[n : n + 1], torch.tensor([float(fs)]))
            for n in ((0, 1) if guidance > 1 else (1,))
        ]
        if len(found) == 1:
            return found[0]
        guided = found[0] + guidance * (found[1] - found[0])
        share = self.scheduler.get("guidance_rescale", 0.0)
        return share * guided * found[1].std() / guided.std() + (1 - share) * guided

    def _text(self, prompt: str) -> torch.Tensor:
        ids = self.tokenizer(prompt, truncation=True, max_length=77).input_ids
        states = self.text(torch.tensor([ids + [0] * (77 - len(ids))]), output_hidden_states=True).hidden_states[-2]
        return getattr(self.text, "text_model", self.text).final_layer_norm(states)

    def _tokens(self, image: torch.Tensor) -> torch.Tensor:
        from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import _resize_with_antialiasing

        side = self.vision.config.image_size
        both = [torch.zeros_like(image), image]
        seen = [(_resize_with_antialiasing(each, (side, side)) / 2 + 0.5 - MEAN) / STD for each in both]
        return self.projection(self.vision(torch.cat(seen)).last_hidden_state)

    def _latents(self, image: torch.Tensor) -> torch.Tensor:
        return self.vae.encode(image).latent_dist.mean * self.vae.config.scaling_factor


def pixels(picture: Image.Image, size: tuple[int, int]) -> torch.Tensor:
    """The middle of a picture whose sides have the clip's ratio already, float32 [1, 3, h, w] in -1..1."""
    import numpy

    scaled = numpy.asarray(picture.resize(size, Image.Resampling.BILINEAR), dtype=numpy.float32)
    return torch.from_numpy(scaled / 255 * 2 - 1).permute(2, 0, 1)[None]


def noise_like(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Drawn frame by frame, as the pack's schedulers draw: the published code's order is another."""
    return torch.randn(x[0].transpose(0, 1).shape, generator=generator).transpose(0, 1)[None]
