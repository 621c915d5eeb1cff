"""Models from single files: the files that hold their parts, and the plan of a checkpoint in diffusers' layout."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ...common.errors import CheckpointError
from .checkpoints.part_plan import PartPlan, Plan
from .checkpoints.single_file import (
    A14B,
    DENOISER,
    FLF2V,
    IMAGE_ENCODER,
    SVD,
    TEXT_ENCODER,
    TI2V,
    VAE,
    WAN21,
    SingleFile,
    expert_of,
    other_expert,
    single_file,
)
from .checkpoints.tensor_files import below, read_tensors
from .clip_vision_file import image_encoder, image_processor
from .svd import single_file as svd
from .wan import single_file as wan

LATE = "transformer_2"
ROLES = {
    "unet": DENOISER,
    "transformer": DENOISER,
    LATE: DENOISER,
    "vae": VAE,
    "text_encoder": TEXT_ENCODER,
    "image_encoder": IMAGE_ENCODER,
}
"""Roles of a checkpoint's networks, by their parts."""
_WAN = {"transformer": wan.TRANSFORMER, "vae": wan.VAE, "text_encoder": wan.TEXT}
CLASSES: Mapping[str, Mapping[str, str]] = {
    SVD: {"unet": svd.UNET, "vae": svd.VAE, "image_encoder": "CLIPVisionModelWithProjection"},
    WAN21: {**_WAN, "image_encoder": "CLIPVisionModel"},
    A14B: {**_WAN, LATE: wan.TRANSFORMER},
    TI2V: _WAN,
}
"""The networks of each model that is opened from single files, and their classes."""
_CLIP = ("CLIPVisionModel", "CLIPVisionModelWithProjection")
READERS: Mapping[str, Callable[[Any], PartPlan]] = {
    svd.UNET: svd.unet,
    svd.VAE: svd.vae,
    wan.TRANSFORMER: wan.transformer,
    wan.VAE: wan.vae,
    wan.TEXT: wan.text_encoder,
    **{name: partial(image_encoder, class_name=name) for name in _CLIP},
}
"""Functions from a network's tensors in its file to its plan, by class."""
INDEX: Mapping[str, Mapping[str, Any]] = {
    SVD: {"_class_name": "StableVideoDiffusionPipeline"},
    WAN21: {"_class_name": "WanImageToVideoPipeline"},
    A14B: {"_class_name": "WanImageToVideoPipeline", "boundary_ratio": wan.BOUNDARY_RATIO},
    TI2V: {"_class_name": "WanImageToVideoPipeline", "expand_timesteps": True},
}
USUAL = {
    VAE: ("vae", "wan_2.1_vae.safetensors"),
    TEXT_ENCODER: ("text_encoders", "umt5_xxl_fp16.safetensors"),
    IMAGE_ENCODER: ("clip_vision", "clip_vision_h.safetensors"),
}
"""ComfyUI's folder for a role, and the usual file there."""
USUAL_VAE = {TI2V: "wan2.2_vae.safetensors", SVD: "a VAE of Stable Video Diffusion"}
"""Other VAEs than the usual one."""


@dataclass(frozen=True)
class Sources:
    """The file of each network of a model; `others` counts the files that would have done as well, by part."""

    model: str
    files: Mapping[str, Path]
    others: Mapping[str, int]

    @property
    def paths(self) -> list[Path]:
        """Every file once."""
        return list(dict.fromkeys(self.files.values()))

    @property
    def lines(self) -> list[str]:
        """Lines on which file each network is taken from, where it is not the denoiser's own."""
        first = self.paths[0]
        return [
            f"{part} from {path.name}"
            + (f", the first of {1 + self.others[part]} that fit" if self.others[part] else "")
            for part, path in self.files.items()
            if path != first
        ]


def put_into(folder: str, usual: str) -> str:
    """Advice on a file that is missing, by ComfyUI's folder for it and its usual name."""
    return f"put {usual} into models/{folder}"


Advice = Callable[[str, str], str]
"""Function as `put_into`."""


def find_sources(path: Path, candidates: Iterable[Path], advice: Advice = put_into) -> Sources:
    """The files of a model by the file of its denoiser, or of one of its two denoisers.

    The others are found among `candidates` by what they hold; the two experts of A14B, which hold the same tensors,
    by the words "high" and "low" in their names. Of several that fit, one whose name has the family's is taken, and of
    those one of the most precise: VAEs of kindred families have the same tensors. Raises CheckpointError in a sentence
    for what is missing, with `advice` on it, quantized or not served.
    """
    file = single_file(path)
    denoiser = file.network(DENOISER) if file else None
    if file is None or file.model is None or denoiser is None:
        raise CheckpointError(f"{path}: expected the denoiser of a known model from picture to video, found no such.")
    if denoiser.is_quantized or file.model == FLF2V:
        reason = "whose weights are quantized" if denoiser.is_quantized else "which is not served"
        raise CheckpointError(
            f"{path.name} is a single file of {file.title}, {reason}: ComfyUI's own {file.loader} opens it, and I2V "
            "Compile Model behind that runs it by engines."
        )
    held = [holder for each in dict.fromkeys([path, *candidates]) if (holder := single_file(each))]
    denoisers = _experts(file, held) if file.model == A14B else {next(iter(CLASSES[file.model])): path}
    found: dict[str, list[SingleFile]] = {
        part: _fitting(held, ROLES[part], denoiser.needs[ROLES[part]], file)
        for part in CLASSES[file.model]
        if ROLES[part] != DENOISER
    }
    missing = [ROLES[part] for part, files in found.items() if not files]
    if missing:
        raise CheckpointError(_missing(file, missing, held, denoiser.needs, advice))
    others = {part: len(files) - 1 for part, files in found.items()} | dict.fromkeys(denoisers, 0)
    return Sources(file.model, {**denoisers, **{part: files[0].path for part, files in found.items()}}, others)


def _fitting(held: Sequence[SingleFile], role: str, kind: str, file: SingleFile) -> list[SingleFile]:
    """The files with a network of that kind, the best first: a file that has both, a namesake, the most precise."""
    family = file.title.split()[0].lower()

    def rank(each: SingleFile) -> tuple[bool, bool, int, str]:
        network = each.network(role)
        size = network.element_bytes if network else 0
        return each.path != file.path, family not in each.path.name.lower(), -size, each.path.name

    return sorted((each for each in held if _has(each, role, kind, quantized=False)), key=rank)


def _has(file: SingleFile, role: str, kind: str, *, quantized: bool) -> bool:
    network = file.network(role)
    return network is not None and kind in network.kinds and network.is_quantized == quantized


def _missing(
    file: SingleFile, roles: Sequence[str], held: Sequence[SingleFile], needs: Mapping[str, str], advice: Advice
) -> str:
    """Sentence on networks that no file holds, and what to do about them."""
    places = []
    for role in roles:
        folder, usual = USUAL[role]
        usual = USUAL_VAE.get(file.model or "", usual) if role == VAE else usual
        quantized = next((each.path.name for each in held if _has(each, role, needs[role], quantized=True)), None)
        instead = f", for the weights of {quantized} are quantized" if quantized else ""
        places.append(f"{advice(folder, usual)}{instead}")
    names = " and ".join(roles)
    return (
        f"{file.path.name} is a single file of {file.title}, with {file.content}; its {names} "
        f"{'is' if len(roles) == 1 else 'are'} missing: {'; '.join(places)}."
    )


def _experts(file: SingleFile, held: Sequence[SingleFile]) -> dict[str, Path]:
    """The files of A14B's two experts, by one of them."""
    own, name = expert_of(file.path), f"{file.path.name} is a single file of {file.title}"
    if own is None:
        raise CheckpointError(
            f"{name}: expected high or low in its name, which tells the two apart, found neither or both."
        )
    others = [each for each in held if each.model == A14B and expert_of(each.path) not in (own, None)]
    namesakes = [each for each in others if each.path.name.lower() == other_expert(file.path)]
    found = namesakes or others
    if len(found) != 1 or not _has(found[0], DENOISER, A14B, quantized=False):
        names = ", ".join(each.path.name for each in found) or "nothing"
        raise CheckpointError(
            f"{name}: expected the other one as {other_expert(file.path)} in models/diffusion_models, not quantized, "
            f"found {names}."
        )
    early, late = (file.path, found[0].path) if own == "high" else (found[0].path, file.path)
    return {"transformer": early, LATE: late}


def read_part(part: str, class_name: str, path: Path) -> PartPlan:
    """A network's plan from the file that holds it, its tensors still in the file.

    Raises CheckpointError for a file that is damaged or whose tensors do not fit.
    """
    file = single_file(path)
    network = file.network(ROLES[part]) if file else None
    tensors = read_tensors([path])
    if network is None:
        raise CheckpointError(f"{path}: expected the {ROLES[part]} of {class_name}, found other tensors.")
    try:
        plan = READERS[class_name](below(tensors, network.prefix))
    except (KeyError, IndexError, StopIteration) as error:
        raise CheckpointError(f"{path}: expected all tensors of the {ROLES[part]}, found none for {error}.") from error
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return replace(plan, source=path)


def plan_of(sources: Sources) -> Plan:
    """The plan of a checkpoint; raises CheckpointError for a file that is damaged or whose tensors do not fit."""
    classes = CLASSES[sources.model]
    parts = {part: read_part(part, name, sources.files[part]) for part, name in classes.items()}
    if "image_encoder" in parts:
        processor = "feature_extractor" if sources.model == SVD else "image_processor"
        parts[processor] = image_processor(parts["image_encoder"].config["image_size"])
    if "text_encoder" in parts:
        parts["tokenizer"] = wan.tokenizer(read_tensors([sources.files["text_encoder"]]))
    scheduler = svd.SCHEDULER if sources.model == SVD else wan.scheduler(sources.model)
    parts["scheduler"] = PartPlan("diffusers", scheduler["_class_name"], scheduler)
    return Plan(INDEX[sources.model], parts)
