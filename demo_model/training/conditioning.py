"""Conditioning of the UNet, by the published pipeline's conventions; training and sampling share it."""

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .networks import MEAN, STD, TOKENS

if TYPE_CHECKING:
    from transformers import CLIPTokenizer


def token_table(tokenizer: "CLIPTokenizer", texts: list[str]) -> Tensor:
    """Token ids (texts, 77), padded with the end token."""
    rows = tokenizer(texts, padding="max_length", max_length=TOKENS, truncation=True)["input_ids"]
    return torch.tensor(rows)


def text_states(text: Any, tokens: Tensor) -> Tensor:
    """Hidden states of a `CLIPTextModel` before its last layer, through its final norm: (B, 77) -> (B, 77, width)."""
    inner = getattr(text, "text_model", text)
    states = text(tokens, output_hidden_states=True).hidden_states[-2]
    return inner.final_layer_norm(states)


def image_states(vision: Any, picture: Tensor) -> Tensor:
    """Projected embedding by a `CLIPVisionModelWithProjection` of pictures (B, 3, H, W) in [0, 1]: (B, 1, width)."""
    edge = vision.config.image_size
    small = F.interpolate(picture, size=(edge, edge), mode="bilinear", antialias=True, align_corners=False)
    mean, std = (torch.tensor(v, device=picture.device).view(1, 3, 1, 1) for v in (MEAN, STD))
    return vision(((small - mean) / std).to(vision.dtype)).image_embeds[:, None]


def image_latents(first: Tensor, frames: int) -> Tensor:
    """Latents of the picture (B, 4, h, w), then the constants i / (F - 1): (B, 4, F, h, w)."""
    ramp = torch.linspace(0, 1, frames, device=first.device, dtype=first.dtype)
    clip = ramp.view(1, 1, -1, 1, 1).expand(*first.shape[:2], -1, *first.shape[2:]).clone()
    clip[:, :, 0] = first
    return clip
