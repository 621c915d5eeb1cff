"""Prompts as the text encoders' token numbers, by the tokenizers that checkpoints bring along."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ...common.errors import CheckpointError
from ..request import ClipRequest
from .checkpoints.diffusers_folder import TOKENIZERS, Part
from .parts import reason_of


def tokenize_prompts(
    part: Part, config: Mapping[str, Any], request: ClipRequest, pad: int | None = None
) -> tuple[torch.Tensor, tuple[str, ...]]:
    """CLIP's token ids int64 [2, limit] of the negative and the positive prompt, and notes on prompts that were cut.

    `config` is the text encoder's. Raises CheckpointError for a tokenizer that cannot be read, or of another encoder.
    """
    limit = config["max_position_embeddings"]
    ids, counts = tokenize(part, (request.negative_prompt, request.prompt), limit, pad)
    if int(ids.max()) >= config["vocab_size"]:
        raise CheckpointError(
            f"{part.folder}: expected token numbers below the text encoder's {config['vocab_size']}, "
            f"found {int(ids.max())}."
        )
    named = zip(("negative prompt", "prompt"), counts, strict=True)
    notes = (f"The {name} has {n} tokens: only the first {limit} count." for name, n in named if n > limit)
    return ids, tuple(notes)


def tokenize(
    part: Part, texts: Sequence[str], limit: int, pad: int | None = None
) -> tuple[torch.Tensor, tuple[int, ...]]:
    """CLIP's token ids int64 [texts, limit], padded or cut, and how many tokens each text has uncut.

    Padded with the token `pad`, or as the tokenizer's own files say. Raises CheckpointError when those cannot be read.
    """
    from transformers import CLIPTokenizer

    try:
        tokenizer = CLIPTokenizer.from_pretrained(part.folder, local_files_only=True)
        whole = tokenizer(list(texts), truncation=False, verbose=False).input_ids
        cut = tokenizer(list(texts), padding="max_length", max_length=limit, truncation=True, return_tensors="pt")
    except Exception as error:  # the library raises bare ones
        raise CheckpointError(f"Expected a CLIP tokenizer in {part.folder}, found: {reason_of(error)}.") from error
    ids = cut.input_ids.long()
    return ids if pad is None else ids.masked_fill(cut.attention_mask == 0, pad), tuple(map(len, whole))


def tokenize_padded(part: Part, texts: Sequence[str], limit: int) -> tuple[torch.Tensor, tuple[int, ...]]:
    """T5's token ids int64 [texts, limit], each text's end kept, padded with 0 or cut; and each text's count uncut.

    Raises CheckpointError when the tokenizer's file cannot be read.
    """
    path = next(path for name in TOKENIZERS if (path := part.folder / name).is_file())
    read = _sentencepiece if path.suffix == ".model" else _tokenizers
    try:
        whole = read(path, texts)
    except Exception as error:  # the libraries raise bare ones
        raise CheckpointError(f"Expected a tokenizer in {path}, found: {reason_of(error)}.") from error
    rows = [ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]] for ids in whole]
    return torch.tensor([row + [0] * (limit - len(row)) for row in rows]), tuple(map(len, whole))


def _tokenizers(path: Path, texts: Sequence[str]) -> list[list[int]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return [found.ids for found in tokenizer.encode_batch(list(texts))]


def _sentencepiece(path: Path, texts: Sequence[str]) -> list[list[int]]:
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_file=str(path), add_eos=True)  # pyright: ignore[reportCallIssue]
    return processor.encode(list(texts))  # pyright: ignore[reportAttributeAccessIssue]
