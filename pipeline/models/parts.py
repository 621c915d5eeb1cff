"""Networks that several families share: CLIP's encoders, the picture VAE, and how a checked part is loaded."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ...common.errors import CheckpointError
from ...common.spec import PRECISIONS
from .checkpoints.diffusers_folder import Part
from .checkpoints.lora import Adapter, Merge
from .checkpoints.lora_tensor_names import plain_name
from .checkpoints.originals import Originals
from .hollow import made_hollow
from .single_files import read_part

ASSEMBLED = ("unet", "transformer", "image_projection")
"""Beginnings of the names of parts whose tensors are put in one by one."""


class TextEncoder(torch.nn.Module):
    """CLIP's text model without its last layer: the published pipeline reads the layer before it (clip skip 1)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        body = getattr(model, "text_model", model)  # transformers 5.6 made the two one
        body.encoder.layers = body.encoder.layers[: model.config.num_hidden_layers - 1]
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """From input_ids [batch, 77] to text_states [batch, 77, width]."""
        return self.model(input_ids=input_ids).last_hidden_state


class ImageEncoder(torch.nn.Module):
    """CLIP's vision model and its projection."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """From normalised pixel_values [batch, 3, side, side] to image_embeds [batch, width]."""
        return self.model(pixel_values=pixel_values).image_embeds


class VaeEncoder(torch.nn.Module):
    """The VAE's encoder up to the mean of its posterior, which depends on no random state."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.encoder, self.quant_conv = vae.encoder, vae.quant_conv

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """From image [batch, 3, h*8, w*8] in -1..1 to mean [batch, 4, h, w], not yet scaled."""
        return self.quant_conv(self.encoder(image)).chunk(2, dim=1)[0]


class VaeDecoder(torch.nn.Module):
    """The VAE's decoder, a frame an item."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.decoder, self.post_quant_conv = vae.decoder, vae.post_quant_conv

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """From unscaled latents [frames, 4, h, w] to image [frames, 3, h*8, w*8] in -1..1."""
        return self.decoder(self.post_quant_conv(latents))


@cache
def code_of(*modules: str) -> str:
    """A digest of the pack's modules that make a network, and of the libraries that they take it from.

    A package's name includes every module in it, imported or not.
    """
    sha = hashlib.sha256()
    for module in modules:
        path = Path(sys.modules[module].__file__ or "")
        for each in sorted(path.parent.glob("*.py")) if path.name == "__init__.py" else [path]:
            sha.update(each.read_bytes())
    for library in ("diffusers", "transformers"):
        sha.update(f"{library} {version(library)}".encode())
    return sha.hexdigest()[:16]


OWN_CLASSES = {
    "DynamiCrafterUNet": "dynamicrafter.stored",
    "DynamiCrafterImageProjection": "dynamicrafter.stored",
    "ToonCrafterVae": "dynamicrafter.stored",
}
"""Classes of the pack that no library has, and their modules beside this one."""


def load_part(part: Part, precision: str, adapters: Sequence[Adapter] = (), originals: Originals | None = None) -> Any:
    """A checked part's network by diffusers or transformers, on the CPU, in the precision, with LoRAs merged into it.

    Stored tensors that a LoRA changes are taken from `originals`, and kept there. The network of a part without weights
    is hollow: its parameters are on the device `meta`.

    Raises CheckpointError when the weights do not fit the configuration, or a LoRA cannot be merged.
    """
    if not part.weights:
        return _hollow(part, precision)
    with import_faults(part.name), Merge(part.name, adapters) as merge:
        if part.linked is not None or part.name.startswith(ASSEMBLED):
            return _assembled(part, precision, merge, originals or Originals())
        network = _loaded(part, precision)
        if adapters:
            _merge(part, precision, merge, network, originals or Originals())
    return network


@contextmanager
def import_faults(component: str) -> Iterator[None]:
    """Turns an import that fails, of a library that is missing or one of two that do not go together, into a sentence.

    Raises CheckpointError in its place.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise CheckpointError(
            f"Loading {component} needs the package {error.name}, which is missing: "
            "install the pack's requirements.txt into ComfyUI's Python."
        ) from error
    except ImportError as error:
        raise CheckpointError(
            f"Loading {component} needs libraries that go together, found: {reason_of(error)}. In ComfyUI's Python: "
            "pip install -U diffusers transformers."
        ) from error


def _loaded(part: Part, precision: str) -> Any:
    """The network as the library itself loads it."""
    try:
        with no_progress_bars():
            network, report = _class_of(part).from_pretrained(
                part.folder,
                variant=part.variant_for(precision),
                torch_dtype=getattr(torch, PRECISIONS[precision]),
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported, and refused below
                **({"low_cpu_mem_usage": False} if part.name == "vae" else {}),
            )
    except (CheckpointError, ImportError):
        raise
    except Exception as error:  # the libraries raise whatever a senseless configuration leads to
        raise CheckpointError(f"Expected {part.config_path} to fit the weights, found: {reason_of(error)}.") from error
    _check_fit(part, share_embedding(network, report))
    return network


def share_embedding(network: Any, report: Mapping[str, Any]) -> dict[str, Any]:
    """The report of a load, with the encoder of a T5 given the embedding that its file holds once.

    Transformers 5.0 to 5.2 share it only where the configuration says so, and give the encoder random numbers.
    """
    name, missing = "encoder.embed_tokens.weight", set(report["missing_keys"])
    if name in missing and hasattr(network, "shared"):
        network.encoder.embed_tokens = network.shared
        missing.remove(name)
    return {**report, "missing_keys": missing}


def from_config(kind: Any, config: Mapping[str, Any]) -> Any:
    """A network of a class of diffusers or transformers, with the weights that its constructor gives it."""
    if hasattr(kind, "from_config"):
        return kind.from_config(config)
    return kind(kind.config_class.from_dict(dict(config)))


def _hollow(part: Part, precision: str) -> Any:
    """The network of a configuration alone, with the dtypes that the libraries' loading would give its weights."""
    kind = _class_of(part)
    try:
        with no_progress_bars():
            network = made_hollow(lambda: from_config(kind, part.config))
    except Exception as error:  # the libraries raise whatever a senseless configuration leads to
        raise CheckpointError(
            f"Expected {part.config_path} to describe a network, found: {reason_of(error)}."
        ) from error
    dtype_of = _dtypes(kind, precision)
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype_of(name))
    return network


def _dtypes(kind: Any, precision: str) -> Callable[[str], torch.dtype]:
    """Function from a tensor's name to the dtype that it has in a network of the class, some of which keep fp32."""
    dtype, kept = getattr(torch, PRECISIONS[precision]), set(getattr(kind, "_keep_in_fp32_modules", None) or ())
    if precision == "bf16" and not hasattr(kind, "from_config"):
        kept = set()  # transformers keeps them against the range of fp16 alone
    return lambda name: torch.float32 if kept & set(name.split(".")) else dtype


def _merge(part: Part, precision: str, merge: Merge, network: torch.nn.Module, originals: Originals) -> None:
    """Replaces parameters that are rounded already by the sums of the stored tensors and the LoRAs' additions."""
    parameters = {plain_name(name): parameter for name, parameter in network.named_parameters()}
    for name, tensor in _stored(part, precision, merge, originals, merge.changes):
        parameter = parameters[plain_name(name)]
        parameter.data = merge.cast(name, tensor, parameter.dtype)


def _stored(
    part: Part, precision: str, merge: Merge, originals: Originals, chosen: Callable[[str], bool] = lambda _: True
) -> Iterator[tuple[str, torch.Tensor]]:
    """The chosen tensors of the files for a precision one by one, as stored; those that a LoRA changes are kept."""
    variant = part.variant_for(precision) or ""
    for name, read in _readers(part, part.weights[variant]):
        if part.keeps(name) and chosen(name):
            key = (part.name, variant, name)
            kept = originals.find(key)
            tensor = read() if kept is None else kept
            if merge.changes(name):
                originals.keep(key, tensor)
            yield name, tensor


def _readers(part: Part, paths: Sequence[Path]) -> Iterator[tuple[str, Callable[[], torch.Tensor]]]:
    """The name of each tensor in some files, and the function that reads it."""
    from safetensors import safe_open

    if part.linked is not None:
        for name, tensor in read_part(part.name, part.class_name, paths[0]).tensors.items():
            yield name, tensor.contiguous
        return
    for path in paths:
        with safe_open(path, framework="pt") as stream:
            for name in stream.keys():  # noqa: SIM118
                yield name, partial(stream.get_tensor, name)


def _assembled(part: Part, precision: str, merge: Merge, originals: Originals) -> Any:
    """The network of a part with its tensors put in one by one, so that it is never there twice.

    Tensors in the precision of the files stay in them until they are read. Diffusers' own loading copies each, and of
    parts that keep some weights in full precision it needs the package accelerate.
    """
    try:
        kind = _class_of(part)
        dtype_of = _dtypes(kind, precision)
        network = _empty(part, kind)
        stored = _stored(part, precision, merge, originals)
        state = {name: merge.cast(name, tensor, dtype_of(name)) for name, tensor in stored}
        report = _put_in(network, state)
    except (CheckpointError, ImportError):
        raise
    except Exception as error:  # the libraries raise whatever a senseless configuration leads to
        raise CheckpointError(f"Expected {part.config_path} to fit the weights, found: {reason_of(error)}.") from error
    _check_fit(part, share_embedding(network, report))
    return network


def _empty(part: Part, kind: Any) -> Any:
    """The network without memory for its weights; that of an encoder has the tensors that no file holds."""
    if part.name.endswith("encoder"):
        return made_hollow(lambda: from_config(kind, part.config))
    with torch.device("meta"):
        return kind.from_config(part.config)


def _put_in(network: torch.nn.Module, state: dict[str, torch.Tensor]) -> dict[str, Iterable[str]]:
    """Gives a network the tensors of its shapes in place of its own; names of the others, as the libraries report."""
    own = {name: tensor.shape for name, tensor in network.state_dict().items()}
    mismatched = {name for name, tensor in state.items() if own.get(name, tensor.shape) != tensor.shape}
    fitting = {name: tensor for name, tensor in state.items() if name not in mismatched}
    found = network.load_state_dict(fitting, strict=False, assign=True)
    ignored = getattr(network, "_keys_to_ignore_on_load_unexpected", None) or ()
    return {
        "missing_keys": set(found.missing_keys) - mismatched,
        "mismatched_keys": mismatched,
        "unexpected_keys": [key for key in found.unexpected_keys if not any(re.search(each, key) for each in ignored)],
    }


def _check_fit(part: Part, report: Mapping[str, Any]) -> None:
    """Raises CheckpointError for weights that do not fit: libraries make up missing ones, with a console line alone."""
    for kind in ("missing", "mismatched", "unexpected"):
        keys = (key if isinstance(key, str) else key[0] for key in report[f"{kind}_keys"])
        # Positions are counted, not learned: older versions saved them all the same.
        names = sorted(key for key in keys if not key.endswith("position_ids"))
        if names:
            found = f"{len(names)} {kind}, such as {names[0]}"
            raise CheckpointError(f"Expected {part.config_path} to fit the weights, found {found}.")


def reason_of(error: Exception) -> str:
    """The first line of content in an error, after the heading that libraries begin with."""
    lines = (line.strip().rstrip(".") for line in str(error).splitlines())
    return next((line for line in lines if line and not line.endswith(":")), type(error).__name__)


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Keeps the libraries' own bars off the console; they measure fractions of a second."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = [library for library in (diffusers_logging, transformers_logging) if library.is_progress_bar_enabled()]
    for library in libraries:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in libraries:
            library.enable_progress_bar()


def own_class(name: str) -> Any:
    """The pack's class of that name: one of `OWN_CLASSES`."""
    return getattr(import_module(f"..{OWN_CLASSES[name]}", __name__), name)


def _class_of(part: Part) -> Any:
    """The class of a part; imported here, so that only a load pays for it. Raises CheckpointError."""
    if part.class_name in OWN_CLASSES:
        return own_class(part.class_name)
    return library_class("transformers" if part.name.endswith("encoder") else "diffusers", part.class_name)


def library_class(name: str, class_name: str) -> Any:
    """A class of diffusers or transformers. Raises CheckpointError for a library of a version without it."""
    library: Any = import_module(name)
    found = getattr(library, class_name, None)
    if found is None:
        name = library.__name__
        raise CheckpointError(
            f"Expected {name} to have {class_name}, found version {library.__version__} without it: "
            f"pip install -U {name}."
        )
    return found
