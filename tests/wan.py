"""Wan's VAEs in small, in both published forms, and a way to run their networks."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch

FORMS = ("wan21", "residual")
"""Wan 2.1's VAE, and the one of Wan 2.2's TI2V-5B."""

_SMALL = {"base_dim": 8, "num_res_blocks": 1}


@cache
def tiny_vae(form: str) -> Any:
    """An AutoencoderKLWan of random weights, in which no two channels are scaled alike; never change it."""
    from diffusers import AutoencoderKLWan

    with torch.random.fork_rng():
        torch.manual_seed(0)
        residual = {
            "decoder_base_dim": 12,
            "z_dim": 48,
            "latents_mean": torch.randn(48).tolist(),
            "latents_std": (torch.rand(48) + 0.5).tolist(),
            "is_residual": True,
            "in_channels": 12,
            "out_channels": 12,
            "patch_size": 2,
            "scale_factor_spatial": 16,
        }
        settings: dict[str, Any] = _SMALL if form == "wan21" else {**_SMALL, **residual}
        vae = AutoencoderKLWan(**settings)
        for name, parameter in vae.named_parameters():
            if name.endswith("gamma"):
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return vae.eval().requires_grad_(False)


class VaeRun:
    """A `Run` over a VAE's networks in eager PyTorch; notes which components were called."""

    def __init__(self, vae: Any) -> None:
        from i2v_tensorrt.pipeline.models.wan_vae import vae_networks

        self.networks = vae_networks(vae.config)
        self.modules = {name: network.module(vae) for name, network in self.networks.items()}
        self.calls: list[str] = []

    def __call__(self, component: str, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        network = self.networks[component]
        self.calls.append(component)
        assert {tensor.name for tensor in network.inputs} == set(inputs)
        found = self.modules[component](**inputs)
        outputs = found if isinstance(found, tuple) else (found,)
        return {tensor.name: value for tensor, value in zip(network.outputs, outputs, strict=True)}


VOCABULARY = 300


@cache
def tiny_text_encoder() -> Any:
    """A UMT5EncoderModel of random weights, in which places, layers and norms can be told apart; never change it."""
    from transformers import UMT5Config, UMT5EncoderModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = UMT5Config(
            vocab_size=VOCABULARY,
            d_model=32,
            d_kv=16,
            d_ff=64,
            num_heads=2,
            num_layers=3,
            feed_forward_proj="gated-gelu",
        )
        model = UMT5EncoderModel(config)
        for name, parameter in model.named_parameters():
            if "layer_norm" in name:
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
            else:
                torch.nn.init.normal_(parameter, std=0.2 if parameter.shape[0] < VOCABULARY else 1)
    return model.eval().requires_grad_(False)
