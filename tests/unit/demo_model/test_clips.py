"""Clips: a pure function of their seeds, with captions and speeds that say what is drawn."""

import dataclasses

import pytest
import torch

from i2v_tensorrt.demo_model.training import train_motion, train_vae
from i2v_tensorrt.demo_model.training.clips import (
    HELD_OUT,
    caption_rows,
    draw,
    held_out_seeds,
    poses,
    practise,
    render,
    training_seeds,
    view_pairs,
)
from i2v_tensorrt.demo_model.training.hashing import Numbers, uniform
from i2v_tensorrt.demo_model.training.measure import carried_back
from i2v_tensorrt.demo_model.training.painting import Brush
from i2v_tensorrt.demo_model.training.vocabulary import ADVERBS, ANGULAR, COLOURS, MOTIONS, THINGS, TURNS, captions

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


def test_streams_hashed_together_are_those_hashed_alone() -> None:
    seeds = held_out_seeds(7, 5, CPU)
    together = Numbers.of(seeds, {3: 4, 90: 2})
    assert torch.equal(together[3], uniform(seeds, 3, 4))
    assert torch.equal(together[90], uniform(seeds, 90, 2))


def test_practice_turns_things_whose_turning_shows() -> None:
    seeds = held_out_seeds(0, 2000, CPU)
    drawn, practised = draw(seeds), practise(seeds)
    turning = torch.isin(practised.motion, torch.tensor(TURNS))
    assert turning.float().mean() > 3 * torch.isin(drawn.motion, torch.tensor(TURNS)).float().mean()
    assert {THINGS[k] for k in practised.thing[turning].tolist()} == {THINGS[k] for k in ANGULAR}
    assert torch.equal(practised.motion[~turning], drawn.motion[~turning])
    assert torch.equal(practised.thing[~turning], drawn.thing[~turning])


@pytest.mark.parametrize("reach", [1.0, 0.5])
def test_the_pose_of_a_pair_undoes_its_motion(reach: float) -> None:
    frames, steps = view_pairs(draw(held_out_seeds(60, 6, CPU)), 2, 64, Brush.on(CPU, 128), reach)
    first, second, pose = frames[:, ::2].flatten(0, 1), frames[:, 1::2].flatten(0, 1), steps.flatten(0, 1)
    gap, inside = carried_back(first, second, pose)
    unmoved, _ = carried_back(first, second, torch.zeros_like(pose))
    assert inside.mean() > 0.8
    assert ((gap.abs() * inside).mean((1, 2, 3)) < 0.7 * (unmoved.abs() * inside).mean((1, 2, 3))).all()


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
