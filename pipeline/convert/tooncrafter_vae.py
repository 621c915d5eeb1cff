"""ToonCrafter's VAE in its published names: Stable Video Diffusion's, and the layers that see two references."""

from __future__ import annotations

from ..models.checkpoints.part_plan import PartPlan, fitted, shapes_of
from ..models.checkpoints.tensor_files import Tensors
from ..models.dynamicrafter.specs import REFERENCE_VAE
from ..models.parts import own_class
from ..models.svd import single_file as svd

REFINEMENT = "decoder.attn_refinement."
UNUSED = "post_quant_conv."
"""A layer before the decoder, which the published code leaves out where there are references."""


def tooncrafter_vae(found: Tensors) -> PartPlan:
    """The plan of the VAE from its tensors, without their prefix; raises CheckpointError for those that do not fit."""
    refining = {name: tensor for name, tensor in found.items() if name.startswith(REFINEMENT)}
    others = {name: x for name, x in found.items() if name not in refining and not name.startswith(UNUSED)}
    plain = svd.vae(others)
    config = {name: value for name, value in plain.config.items() if name != "_class_name"}
    shapes = shapes_of(own_class(REFERENCE_VAE), config)
    tensors = fitted("ToonCrafter's VAE", shapes, {**plain.tensors, **refining})
    return PartPlan("i2v_tensorrt", REFERENCE_VAE, {"_class_name": REFERENCE_VAE, **config}, tensors)
