"""Wan's text encoder: transformers' states for the tokens that there are, zeros after them, and no overflow."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import pytest
import torch

from i2v_tensorrt.pipeline.models.wan.text_encoder import TOKENS, TextEncoder, clean, encode_texts
from i2v_tensorrt.tests.helpers.wan import VOCABULARY, tiny_text_encoder

GATE = 1e-5


def draw_ids(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, VOCABULARY, (1, count), generator=torch.Generator().manual_seed(seed))


def published(model: Any, ids: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """As diffusers' pipeline has it: all 512 places, a mask, and zeros in the end."""
    there = torch.arange(TOKENS)[None] < torch.tensor(counts)[:, None]
    return model(ids, there.long()).last_hidden_state * there[..., None]


def run_of(network: torch.nn.Module, calls: list[int]) -> Any:
    def run(component: str, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        assert component == "text_encoder"
        calls.append(inputs["input_ids"].shape[1])
        return {"text_states": network(**inputs)}

    return run


def test_states_are_those_of_the_padded_prompts() -> None:
    model, counts, calls = tiny_text_encoder(), [1, 2, 77, TOKENS], list[int]()
    ids = torch.cat([torch.nn.functional.pad(draw_ids(n, n), (0, TOKENS - n)) for n in counts])
    found, expected = encode_texts(run_of(TextEncoder(model), calls), ids, counts), published(model, ids, counts)
    assert calls == counts
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= GATE * float(expected.abs().max())
    ids = draw_ids(TOKENS)  # of a prompt that was cut: it has every place
    assert encode_texts(run_of(TextEncoder(model), calls), ids, [TOKENS + 9]).shape[:2] == (1, TOKENS)
    assert calls[len(counts) :] == [TOKENS]
    for states, count in zip(found, counts, strict=True):
        assert not states[count:].any() and states[:count].any(dim=-1).all()


def test_places_and_each_layers_own_biases_count() -> None:
    model, ids = tiny_text_encoder(), draw_ids(40)
    right = model(ids).last_hidden_state
    mirrored, swapped = TextEncoder(model), deepcopy(model)
    mirrored.buckets = mirrored.buckets.flip(0)
    first, second = (swapped.encoder.block[number].layer[0].SelfAttention for number in (0, 1))
    first.relative_attention_bias, second.relative_attention_bias = (
        second.relative_attention_bias,
        first.relative_attention_bias,
    )
    for wrong in (mirrored(ids), TextEncoder(swapped)(ids), TextEncoder(model)(ids.flip(1)).flip(1)):
        assert float((wrong - right).abs().max()) > 1000 * GATE * float(right.abs().max())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("louder", [1, 300])
def test_half_precision_holds_where_activations_outgrow_it(dtype: torch.dtype, louder: int) -> None:
    model, ids = deepcopy(tiny_text_encoder()), draw_ids(40)
    for block in model.encoder.block:
        block.layer[-1].DenseReluDense.wi_1.weight *= louder
        block.layer[-1].DenseReluDense.wo.weight *= louder
    expected = model(ids).last_hidden_state
    half = model.to(dtype)
    theirs, ours = half(ids).last_hidden_state, TextEncoder(half)(ids)
    assert ours.dtype == dtype
    assert similarity(ours, expected) > 0.99
    # What our way is there for: transformers clamps to the largest half, and by then values are lost.
    assert (similarity(theirs, expected) > 0.99) == (dtype == torch.bfloat16 or louder == 1)


def similarity(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The cosine, 0 where anything is not finite."""
    one, other = found.double().flatten(), expected.double().flatten()
    return float(torch.nan_to_num(torch.nn.functional.cosine_similarity(one, other, dim=0)))


def test_weights_that_transformers_keeps_in_full_precision_are_rounded() -> None:
    model = deepcopy(tiny_text_encoder()).half()
    model.encoder.block[0].layer[-1].DenseReluDense.wo.float()
    assert {parameter.dtype for parameter in TextEncoder(model).parameters()} == {torch.float16}


PROMPTS = [
    ("  a boat\n\n on\tthe\u00a0sea ", "a boat on the sea"),
    ("fish &amp;amp; chips &lt;3", "fish & chips <3"),
    ("the \u201cold\u201d man\u2019s sea", 'the "old" man\'s sea'),
    ("海上的小船\uff0c静态\u3000ＡＢ", "海上的小船,静态 AB"),
    ("\ufb01sh, cafe\u0301, ｶﾞ", "fish, caf\u00e9, ガ"),
    ("", ""),
]


@pytest.mark.parametrize(("text", "cleaned"), PROMPTS)
def test_prompts_are_cleaned(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned


@pytest.mark.parametrize("text", [text for text, _ in PROMPTS])
def test_prompts_are_cleaned_as_the_published_pipeline_does(text: str) -> None:
    pytest.importorskip("ftfy")
    from diffusers.pipelines.wan.pipeline_wan_i2v import prompt_clean

    assert clean(text) == prompt_clean(text)
