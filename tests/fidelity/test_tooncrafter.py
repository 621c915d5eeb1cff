"""ToonCrafter's VAE, converted from its published names, against the same tensors by hand, with controls.

Against the published code itself (Doubiiu/ToonCrafter at b0c47ff) it was compared once by hand, with random weights and
PyTorch's own attention in the place of xFormers': at two sizes the encoder and its states were off by 3.5e-6 of the
greatest value at most, the decoder by 6.6e-6, and without references by 26 hundredths and more.
"""

from collections.abc import Callable

import pytest
import torch

from i2v_tensorrt.common.errors import CheckpointError, InputError
from i2v_tensorrt.pipeline.convert.folder import write_part
from i2v_tensorrt.pipeline.convert.tooncrafter_vae import tooncrafter_vae
from i2v_tensorrt.pipeline.models.dynamicrafter import tooncrafter
from i2v_tensorrt.pipeline.models.dynamicrafter.stored import ATTENDING_LEVELS, ToonCrafterVae
from i2v_tensorrt.pipeline.models.dynamicrafter.tooncrafter import ReferenceDecoder, ReferenceEncoder, decode_between

from ..helpers import tooncrafter_reference as by_hand

PARITY = 1e-5
PLANE = (4, 8)
Tensors = dict[str, torch.Tensor]
References = tuple[torch.Tensor, ...]


@pytest.fixture(scope="module")
def published() -> Tensors:
    """A narrow VAE's tensors as its publishers name them, none of them zero."""
    generator = torch.Generator().manual_seed(0)
    vae = ToonCrafterVae(block_out_channels=(32, 64, 64, 96))
    stored = {
        name: tensor if tensor.any() else torch.randn(tensor.shape, generator=generator) * 0.05
        for name, tensor in vae.state_dict().items()
    }
    tensors = by_hand.published_names(stored)
    return {**tensors, "post_quant_conv.weight": torch.ones(4, 4, 1, 1), "post_quant_conv.bias": torch.zeros(4)}


@pytest.fixture(scope="module")
def vae(published: Tensors, tmp_path_factory: pytest.TempPathFactory) -> ToonCrafterVae:
    """The VAE of the folder that they are converted to."""
    folder = tmp_path_factory.mktemp("tooncrafter") / "vae"
    write_part(folder, "vae", tooncrafter_vae(published))
    return ToonCrafterVae.from_pretrained(folder, low_cpu_mem_usage=False).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def latents() -> torch.Tensor:
    return torch.randn(tooncrafter.FRAMES, 4, *PLANE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def references(vae: ToonCrafterVae) -> References:
    """Of two pictures at random."""
    return tuple(ReferenceEncoder(vae)(pictures())[1:])


def pictures() -> torch.Tensor:
    return torch.rand(2, 3, 8 * PLANE[0], 8 * PLANE[1], generator=torch.Generator().manual_seed(2)) * 2 - 1


def off(found: torch.Tensor, wanted: torch.Tensor) -> float:
    assert found.shape == wanted.shape
    return float((found - wanted).abs().max() / wanted.abs().max())


@torch.no_grad()
def test_the_encoder_gives_latents_and_states(published: Tensors, vae: ToonCrafterVae, references: References) -> None:
    mean, *found = ReferenceEncoder(vae)(pictures())
    latents, wanted = by_hand.encode(published, pictures())
    assert off(mean, latents) <= PARITY and len(found) == len(wanted) == len(tooncrafter.REFERENCE_NAMES)
    assert all(off(one, other) <= PARITY for one, other in zip(found, wanted, strict=True))


@torch.no_grad()
def test_the_decoder_is_the_published_formula(
    published: Tensors, vae: ToonCrafterVae, latents: torch.Tensor, references: References
) -> None:
    decoder, wanted = ReferenceDecoder(vae), by_hand.decode(published, latents, references)
    assert wanted.shape == (16, 3, 8 * PLANE[0], 8 * PLANE[1])
    assert off(decoder(latents, *references), wanted) <= PARITY
    for number in range(len(references)):
        assert off(decoder(latents, *changed(references, number, torch.zeros_like)), wanted) > 10 * PARITY, number


@pytest.mark.slow
@torch.no_grad()
def test_the_order_of_the_pictures_counts_where_they_are_added_to_the_ends(
    vae: ToonCrafterVae, latents: torch.Tensor, references: References
) -> None:
    """Attention sees a set of places, whose order is none."""
    decoder, (attending, *_) = ReferenceDecoder(vae), ATTENDING_LEVELS
    wanted = decoder(latents, *references)
    assert off(decoder(latents, *changed(references, attending, swapped)), wanted) <= PARITY
    for number in (0, len(references) - 1):
        assert off(decoder(latents, *changed(references, number, swapped)), wanted) > 10 * PARITY, number


def changed(references: References, number: int, change: Callable[[torch.Tensor], torch.Tensor]) -> References:
    return tuple(change(x) if at == number else x for at, x in enumerate(references))


def swapped(reference: torch.Tensor) -> torch.Tensor:
    return reference.flip(0)


@pytest.mark.slow
@torch.no_grad()
def test_the_frames_in_the_middle_come_from_a_second_decoding(
    published: Tensors, vae: ToonCrafterVae, latents: torch.Tensor, references: References
) -> None:
    names = tooncrafter.REFERENCE_NAMES
    decoder = ReferenceDecoder(vae)
    found = decode_between(
        lambda x, given: decoder(x, *given.values()), latents, dict(zip(names, references, strict=True))
    )
    whole = by_hand.decode(published, latents, references)
    inner = by_hand.decode(published, latents[by_hand.INNER], references)
    wanted = torch.cat([whole[:7], inner[6:8], whole[9:]])
    assert off(found, wanted) <= PARITY
    assert off(whole, wanted) > 10 * PARITY, "a control"
    with pytest.raises(InputError, match="^ToonCrafter decodes 16 frames together, found 15.$"):
        decode_between(lambda x, given: x, latents[1:], {})


def test_weights_are_kept_bit_for_bit(published: Tensors, vae: ToonCrafterVae) -> None:
    state = vae.state_dict()
    for name, tensor in published.items():
        if name.startswith("decoder.attn_refinement."):
            assert torch.equal(state[name], tensor)
    assert sum(tensor.numel() for tensor in state.values()) == sum(tensor.numel() for tensor in published.values()) - 20


def test_the_published_decoder_has_as_many_numbers() -> None:
    with torch.device("meta"):
        decoder = ToonCrafterVae().decoder
    tensors = list(decoder.parameters())
    assert (len(tensors), sum(tensor.numel() for tensor in tensors)) == (286, 65_778_223)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"decoder.attn_refinement.2.to_q.weight": None}, "found none for decoder.attn_refinement.2.to_q.weight"),
        ({"decoder.attn_refinement.9.conv.weight": torch.ones(2)}, "found 1, such as decoder.attn_refinement.9"),
    ],
    ids=["missing", "one too many"],
)
def test_tensors_that_do_not_fit_are_named(
    published: Tensors, change: dict[str, torch.Tensor | None], words: str
) -> None:
    given = {name: tensor for name, tensor in {**published, **change}.items() if tensor is not None}
    with pytest.raises(CheckpointError, match=words):
        tooncrafter_vae(given)
