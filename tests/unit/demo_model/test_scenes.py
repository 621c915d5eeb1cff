"""Pictures of fine detail: drawn from their seeds alone, with letters that a reader reads until they blur."""

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from i2v_tensorrt.demo_model.training import networks as nets
from i2v_tensorrt.demo_model.training.clips import (
    FRAMES,
    Clips,
    draw,
    frame_indices,
    held_out_seeds,
    practise,
    render,
)
from i2v_tensorrt.demo_model.training.detail import detail_ratio, finest_energy, has_letters_of, letters_read
from i2v_tensorrt.demo_model.training.drawings import DRAWINGS, LAYERS, LETTERS, drawing_atlas, letter_strip
from i2v_tensorrt.demo_model.training.evaluate import Judge, judge_detail, truth
from i2v_tensorrt.demo_model.training.painting import Brush
from i2v_tensorrt.demo_model.training.pictures import FIRST_SCENE, STYLES
from i2v_tensorrt.demo_model.training.scenes import PAGE, SCENES, fractal
from i2v_tensorrt.demo_model.training.vocabulary import MOTIONS

CPU = torch.device("cpu")


def of_scene(seeds: Tensor, scene: int) -> Clips:
    """Drawn clips that pan over a scene."""
    clips = draw(seeds)
    pan = torch.full_like(clips.motion, MOTIONS.index("pan left"))
    return replace(clips, style=torch.full_like(clips.style, FIRST_SCENE + scene), motion=pan)


def blurred(frames: Tensor, by: int) -> Tensor:
    """Frames made small by a factor and large again."""
    small = F.avg_pool2d(frames.flatten(0, 1), by)
    return F.interpolate(small, scale_factor=by, mode="bilinear").view_as(frames)


@pytest.mark.parametrize("scene", range(len(SCENES)), ids=SCENES)
def test_a_scene_depends_on_its_seed_alone_and_has_detail(scene: int) -> None:
    seeds, first = torch.tensor([77, 3]), torch.zeros(2, 1)
    among = render(of_scene(seeds, scene), first, 64)[:, 0]
    alone = render(of_scene(seeds[:1], scene), first[:1], 64)[:, 0]
    assert torch.allclose(among[0], alone[0], atol=1e-5)
    assert not torch.allclose(among[1], alone[0], atol=0.05)
    assert among.min() >= 0 and among.max() <= 1 and among.std() > 0.02


def test_scenes_have_more_detail_than_the_plain_styles() -> None:
    clips = draw(held_out_seeds(0, 6, CPU))
    plain = render(clips, torch.zeros(6, 1), 128)[:, 0]
    kinds = torch.arange(6) + FIRST_SCENE
    assert (
        finest_energy(render(replace(clips, style=kinds), torch.zeros(6, 1), 128)[:, 0]).mean()
        > 3 * finest_energy(plain).mean()
    )


def test_practice_shows_every_scene_and_every_plain_style() -> None:
    seeds = held_out_seeds(0, 2000, CPU)
    styles = practise(seeds).style
    assert set(styles.tolist()) == set(range(FIRST_SCENE + len(SCENES)))
    assert 0.4 < (styles >= FIRST_SCENE).float().mean() < 0.7
    assert draw(seeds).style.max() < len(STYLES)


def test_every_layer_of_a_drawing_lies_within_its_field() -> None:
    fields_ = drawing_atlas(CPU)[:, 0]
    assert len(fields_) == LAYERS * len(DRAWINGS)
    covered = (fields_ < 0).float()
    edge = torch.cat([covered[:, 0], covered[:, -1], covered[:, :, 0], covered[:, :, -1]], 1)
    assert edge.max() == 0
    assert (covered.unflatten(0, (-1, LAYERS))[:, 0].mean((1, 2)) > 0.001).all()
    strip = letter_strip(CPU)[0, 0].unflatten(0, (len(LETTERS), -1))
    assert ((strip < 0).float().mean((1, 2)) > 0.02).all()


def test_noise_has_the_same_size_with_any_number_of_octaves() -> None:
    points = torch.rand(1, 200, 200, 2) * 4 - 2
    few, many = (fractal(points, torch.rand(1, 3), 4.0, octaves) for octaves in (2, 6))
    assert few.std() == pytest.approx(0.5, abs=0.1) and many.std() == pytest.approx(0.5, abs=0.1)


def test_the_middle_of_a_clip_is_the_clip_there() -> None:
    clips = draw(held_out_seeds(0, 2, CPU))
    brush = Brush.on(CPU, 64)
    whole = render(clips, frame_indices(2, 3, CPU), 64, brush)
    middle = render(clips, frame_indices(2, 3, CPU), 32, brush, reach=0.5)
    assert torch.allclose(middle, whole[..., 16:48, 16:48], atol=1e-4)


def test_letters_are_read_where_they_moved_to_until_they_blur() -> None:
    candidates = draw(held_out_seeds(0, 120, CPU))
    rows = has_letters_of(candidates).nonzero()[:2, 0]
    chosen = Clips(**{each.name: getattr(candidates, each.name)[rows] for each in fields(Clips)})
    clips = of_scene(chosen.seeds, PAGE)
    truth = render(clips, frame_indices(len(rows), 4, CPU), 256)
    assert letters_read(clips, truth, truth) == 1.0
    assert letters_read(clips, blurred(truth, 2), truth) > 0.8
    assert letters_read(clips, blurred(truth, 8), truth) < 0.3
    assert letters_read(clips, truth[:, :1].expand_as(truth), truth) < 0.6, "a page that stays is not where it is read"
    assert detail_ratio(truth, truth) == 1.0 and detail_ratio(blurred(truth, 2), truth) < 0.5
    assert FRAMES >= truth.shape[1]


class Perfect(Judge):
    """Makes the very clips that are asked for."""

    def animate(
        self, clips: Clips, prompts: list[str], negatives: list[str] | None = None, steps: int | None = None
    ) -> Tensor:
        return truth(clips, self.pixels)


def test_the_judge_of_detail_finds_no_fault_with_the_truth(tmp_path: Path) -> None:
    networks = nets.build(nets.Sizes.tiny(), 1)
    networks.vae.register_to_config(sample_size=128)
    found = judge_detail(Perfect(networks, None, CPU, 1, 1.0), 1, tmp_path)
    assert found["detail_ratio"] == found["detail_page_ratio"] == 1.0
    assert found["letters_read_percent"] == 100.0 > found["letters_read_through_vae_percent"]
    assert {path.stem for path in tmp_path.glob("*.png")} == {f"detail-{name}" for name in SCENES}
