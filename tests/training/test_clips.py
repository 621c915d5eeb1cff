"""Clips: a pure function of their seeds, with captions and speeds that say what is drawn."""

import dataclasses

import pytest
import torch

from i2v_tensorrt.training import train_motion, train_vae
from i2v_tensorrt.training.clips import (
    HELD_OUT,
    caption_rows,
    draw,
    held_out_seeds,
    poses,
    render,
    training_seeds,
)
from i2v_tensorrt.training.hashing import uniform
from i2v_tensorrt.training.vocabulary import ADVERBS, COLOURS, MOTIONS, THINGS, captions

CPU = torch.device("cpu")


def test_a_clip_depends_on_its_seed_alone() -> None:
    indices = torch.tensor([[0.0, 9.0]])
    alone = render(draw(torch.tensor([77])), indices, 32)
    among = render(draw(torch.tensor([3, 77])), indices.expand(2, 2), 32)
    assert torch.allclose(among[1], alone[0], atol=1e-6)
    assert not torch.allclose(among[0], alone[0], atol=0.05)


def test_uniform_numbers_fill_their_range_and_streams_differ() -> None:
    seeds = held_out_seeds(0, 4000, CPU)
    first, second = uniform(seeds, 1, 3), uniform(seeds, 2, 3)
    assert first.min() >= 0 and first.max() < 1
    assert torch.allclose(first.mean(0), torch.full((3,), 0.5), atol=0.03)
    assert torch.corrcoef(torch.cat([first, second], 1).T).fill_diagonal_(0).abs().max() < 0.08


@pytest.mark.parametrize(("start", "count"), [(-1, 1), (HELD_OUT - 1, 2), (HELD_OUT, 1)])
def test_training_cannot_reach_held_out_seeds(start: int, count: int) -> None:
    with pytest.raises(ValueError, match="expected training seeds"):
        training_seeds(start, count, CPU)


def test_stages_and_held_out_clips_share_no_seed() -> None:
    last = training_seeds(HELD_OUT - 4, 4, CPU).max()
    assert last < held_out_seeds(0, 1, CPU)[0]
    assert train_vae.FIRST_SEED < train_motion.FIRST_SEED < HELD_OUT


def test_captions_name_what_is_drawn() -> None:
    clips = draw(held_out_seeds(50, 600, CPU))
    table = captions()
    things, colours = list(THINGS), list(COLOURS)
    for row, motion, adverb, colour, thing, wording in zip(
        caption_rows(clips).tolist(),
        clips.motion.tolist(),
        clips.adverb.tolist(),
        clips.colour.tolist(),
        clips.thing.tolist(),
        clips.wording.tolist(),
        strict=True,
    ):
        words = table[row].split()
        if MOTIONS[motion] == "still":
            assert table[row] in ("still", "nothing moves")
            continue
        assert ADVERBS[adverb] in ("", words[-1])
        if clips.motion[0].new_tensor(motion) >= MOTIONS.index("moves left"):
            assert f"{colours[colour]} {things[thing]} {MOTIONS[motion]}" in table[row]
        else:
            kind, way = MOTIONS[motion].split()
            assert any(word.startswith(kind) for word in words)
            assert (way in words) == (wording < 2)
    assert set(clips.motion.tolist()) == set(range(len(MOTIONS)))


@pytest.mark.parametrize("motion", ["pan left", "zoom out", "rotate clockwise", "moves up", "grows"])
def test_twice_the_fps_moves_half_as_far_a_frame(motion: str) -> None:
    clips = draw(held_out_seeds(0, 2, CPU))
    clips = dataclasses.replace(
        clips,
        motion=torch.full((2,), MOTIONS.index(motion)),
        adverb=torch.zeros(2, dtype=torch.long),
        fps=torch.tensor([8, 16]),
    )
    far, near = poses(clips, torch.tensor([[1.0, 2.0]] * 2))
    moved = near if bool(clips.names_a_shape[0]) else far
    assert moved[0].abs().sum() > 0
    assert torch.allclose(moved[0], 2 * moved[1], atol=1e-6)
    assert torch.allclose(moved[:, 1], 2 * moved[:, 0], atol=1e-6)
