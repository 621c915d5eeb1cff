"""Wan's VAEs, in both published forms, and its text encoder, all in small, and ways to run their networks."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from i2v_tensorrt.pipeline.models.diffusers_family import Network

FORMS = ("wan21", "ti2v")
"""Wan 2.1's VAE, and the one of Wan 2.2's TI2V-5B."""

TEXT = "umt5"
VOCABULARY = 300


@cache
def tiny_vae(form: str, channels: int = 8) -> Any:
    """An AutoencoderKLWan of random weights, in which no two channels are scaled alike; never change it."""
    from diffusers import AutoencoderKLWan

    from i2v_tensorrt.pipeline.dummies.wan import TinyWanSizes, vae_settings

    with torch.random.fork_rng():
        torch.manual_seed(0)
        # Channels in the published proportions, which tell a block's input from its output.
        settings = {**vae_settings(form, TinyWanSizes(vae_channels=channels)), "dim_mult": [1, 2, 4, 4]}
        vae = AutoencoderKLWan(**settings)
        for name, parameter in vae.named_parameters():
            if name.endswith("gamma"):
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return vae.eval().requires_grad_(False)


class VaeRun:
    """A `Run` over a VAE's networks in eager PyTorch; notes which components were called."""

    def __init__(self, vae: Any) -> None:
        from i2v_tensorrt.pipeline.models.wan.vae import vae_networks

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


@cache
def tiny_text_encoder(head: int = 16) -> Any:
    """A UMT5EncoderModel of random weights, in which places, layers and norms can be told apart; never change it."""
    from transformers import UMT5Config, UMT5EncoderModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = UMT5Config(
            vocab_size=VOCABULARY,
            d_model=32,
            d_kv=head,
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


def networks(form: str, wide: bool = False) -> dict[str, Network]:
    """The rows for one of `FORMS`, or for `TEXT`; with heads that TensorRT has kernels for where `wide`."""
    from i2v_tensorrt.pipeline.models.wan.text_encoder import text_network
    from i2v_tensorrt.pipeline.models.wan.vae import vae_networks

    config = _model(form, wide).config
    return {"text_encoder": text_network(config.to_dict())} if form == TEXT else vae_networks(config)


def load_network(form: str, component: str, precision: str, wide: str = "") -> torch.nn.Module:
    """A network in a precision; the function that another process finds by its name."""
    model = deepcopy(_model(form, bool(wide)))
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    return networks(form, bool(wide))[component].module(model.to(dtype)).eval().requires_grad_(False)


def _model(form: str, wide: bool) -> Any:
    if form == TEXT:
        return tiny_text_encoder(64 if wide else 16)
    return tiny_vae(form, 16 if wide else 8)
