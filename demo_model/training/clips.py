"""Clips as a pure function of their seeds: the shape, its motion, the caption and the frames."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .hashing import Numbers, below, integer, uniform
from .motion import PIXEL, TRACK_FAR, TRACK_NEAR, between, camera_poses, content_origin, shape_poses
from .painting import PIXELS, REACH, Brush, grid
from .pictures import FIRST_SCENE, STREAMS, STYLES, Named, background, foreground
from .scenes import SCENES
from .vocabulary import (
    ADVERB_SPEED,
    ADVERBS,
    ANGULAR,
    CAMERA,
    COLOURS,
    FIRST_SHAPE,
    OPEN_WORDING,
    THINGS,
    TRACKS,
    TURNS,
    VIEWS,
    WEIGHTS,
    WORDINGS,
)

FRAMES = 16
SLOWEST_FPS, FASTEST_FPS = 8, 32
OPEN_SHARE = 0.06
TURNING_SHARE, SCENE_SHARE = 0.2, 0.55
HELD_OUT = 2**40  # training seeds lie below, held-out seeds from here on


@dataclass(frozen=True)
class View:
    """What training clips show: their edge in pixels, frames, and how much of the clip's half-width.

    Half of it, at half the edge, costs a quarter and has the same detail and speed in pixels.
    """

    pixels: int
    frames: int = FRAMES
    reach: float = 1.0

    @property
    def whole_pixels(self) -> int:
        """Edge of a clip that is shown whole."""
        return round(self.pixels / self.reach)


@dataclass(frozen=True)
class Clips:
    """Content of a batch of clips; every field is (B,) unless another shape is given.

    motion, adverb, colour, thing and style are rows of their tables; centre is (B, 2), half-widths.
    """

    seeds: Tensor
    motion: Tensor
    adverb: Tensor
    wording: Tensor
    fps: Tensor
    colour: Tensor
    thing: Tensor
    style: Tensor
    centre: Tensor
    radius: Tensor

    @property
    def names_a_shape(self) -> Tensor:
        return self.motion >= FIRST_SHAPE

    @property
    def speed_factor(self) -> Tensor:
        return torch.tensor(ADVERB_SPEED, device=self.seeds.device)[self.adverb]


def training_seeds(start: int, count: int, device: torch.device) -> Tensor:
    """Seeds [start, start + count), which must lie below the held-out ones."""
    if start < 0 or start + count > HELD_OUT:
        raise ValueError(f"expected training seeds in [0, {HELD_OUT}), found {start} to {start + count - 1}")
    return torch.arange(start, start + count, device=device)


def held_out_seeds(start: int, count: int, device: torch.device) -> Tensor:
    """Seeds that no training run can reach."""
    return torch.arange(HELD_OUT + start, HELD_OUT + start + count, device=device)


def draw(seeds: Tensor) -> Clips:
    """Chooses the content of each clip: int64 seeds (B,) -> Clips on the same device."""
    numbers = Numbers.of(seeds, {1: 12, 2: 1, 3: 1, 4: 1, 5: 1, 6: 1})
    u = numbers[1]

    def choose(stream: int, limit: int) -> Tensor:
        return below(numbers[stream][:, 0], limit)

    edges = torch.tensor(WEIGHTS, device=seeds.device).cumsum(0)
    motion = torch.bucketize(u[:, 0] * edges[-1], edges).clamp(max=len(WEIGHTS) - 1)
    wording = torch.where(u[:, 1] < OPEN_SHARE, OPEN_WORDING, choose(2, 2))
    rate = SLOWEST_FPS * (FASTEST_FPS / SLOWEST_FPS) ** u[:, 2]
    return Clips(
        seeds=seeds,
        motion=motion,
        adverb=choose(3, len(ADVERBS)),
        wording=wording,
        fps=rate.round().long(),
        colour=choose(4, len(COLOURS)),
        thing=choose(5, len(THINGS)),
        style=choose(6, len(STYLES)),
        centre=u[:, 3:5] * 0.7 - 0.35,
        radius=0.24 + 0.14 * u[:, 5],
    )


def practise(seeds: Tensor) -> Clips:
    """As `draw`, but more is shown of what is hard to learn from a few: things whose turning shows, fine detail."""
    clips = draw(seeds)
    numbers = Numbers.of(seeds, {10: 5})[10]
    chosen = numbers[:, 0] < TURNING_SHARE
    turns = torch.tensor(TURNS, device=seeds.device)[below(numbers[:, 1], len(TURNS))]
    angular = torch.tensor(ANGULAR, device=seeds.device)[below(numbers[:, 2], len(ANGULAR))]
    motion = torch.where(chosen, turns, clips.motion)
    turning = (motion == TURNS[0]) | (motion == TURNS[1])
    scene = FIRST_SCENE + below(numbers[:, 4], len(SCENES))
    style = torch.where(numbers[:, 3] < SCENE_SHARE, scene, clips.style)
    return replace(clips, motion=motion, thing=torch.where(turning, angular, clips.thing), style=style)


def caption_rows(clips: Clips) -> Tensor:
    """Row of each clip's caption in `vocabulary.captions()`, (B,)."""
    camera = (clips.motion * len(ADVERBS) + clips.adverb) * WORDINGS + clips.wording
    shape = (clips.motion - FIRST_SHAPE) * len(ADVERBS) + clips.adverb
    shape = (shape * 2 + clips.wording % 2) * len(COLOURS) + clips.colour
    shape = shape * len(THINGS) + clips.thing + len(CAMERA) * len(ADVERBS) * WORDINGS
    return torch.where(clips.names_a_shape, shape, camera)


def poses(clips: Clips, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Poses of the far and the near layer at frame indices (B, F): two (B, F, 4)."""
    times = indices / clips.fps[:, None]
    camera = camera_poses(clips.motion, clips.speed_factor, times)
    track = ((clips.motion == TRACKS[0]) | (clips.motion == TRACKS[1]))[:, None, None]
    shape = shape_poses(clips.motion, clips.speed_factor, times)
    named = clips.names_a_shape[:, None, None]
    far = torch.where(named, torch.zeros_like(camera), torch.where(track, camera * TRACK_FAR, camera))
    return far, torch.where(named, shape, torch.where(track, camera * TRACK_NEAR, camera))


def look(canvas: Tensor, origin: Tensor) -> Tensor:
    """Samples canvases (B, C, S, S) at (B, F, H, W, 2) half-widths -> (B, F, C, H, W)."""
    batch, frames, height, width, _ = origin.shape
    flat = (origin / REACH).view(batch, frames * height, width, 2)
    seen = F.grid_sample(canvas, flat, mode="bilinear", padding_mode="border", align_corners=False)
    return seen.view(batch, -1, frames, height, width).transpose(1, 2)


def canvases(clips: Clips, brush: Brush) -> tuple[Tensor, Tensor]:
    """The far canvas (B, 3, S, S) and the near one with coverage (B, 4, S, S)."""
    named = Named(clips.thing, clips.colour, clips.centre, clips.radius, clips.names_a_shape)
    layered = ((clips.motion == TRACKS[0]) | (clips.motion == TRACKS[1])) | (
        ~clips.names_a_shape & (clips.seeds % 3 == 0)
    )
    avoid = torch.where(clips.names_a_shape, clips.colour, -1)
    numbers = Numbers.of(clips.seeds, STREAMS)
    far = background(brush, numbers, clips.style, avoid)
    return far, foreground(brush, numbers, clips.style, layered, named)


def render(
    clips: Clips, indices: Tensor, pixels: int = PIXELS, brush: Brush | None = None, reach: float = 1.0
) -> Tensor:
    """Frames at indices (B, F) of each clip: (B, F, 3, pixels, pixels) in [0, 1].

    brush may bring a compiled way of drawing; reach below 1 shows the middle alone, that far from the centre.
    """
    far_poses, near_poses = poses(clips, indices)
    about = torch.where(clips.names_a_shape[:, None], clips.centre, 0.0)
    return _show(clips, (far_poses, near_poses), about, grid(pixels, reach, clips.seeds.device), brush)


def _show(
    clips: Clips, layer_poses: tuple[Tensor, Tensor], about: Tensor, points: Tensor, brush: Brush | None
) -> Tensor:
    """The far and the near layer at their poses (B, F, 4), the near one about a centre (B, 2), seen at points."""
    far, near = canvases(clips, brush or Brush.on(points.device, len(points)))
    back = look(far, content_origin(points, layer_poses[0], torch.zeros_like(about)))
    front = look(near, content_origin(points, layer_poses[1], about))
    return (back * (1 - front[:, :, 3:]) + front[:, :, :3]).clamp(0, 1)


def view_pairs(
    clips: Clips, pairs: int, pixels: int = PIXELS, brush: Brush | None = None, reach: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Pairs of consecutive frames in which the whole view moves as one, whatever the captions say.

    Returns frames (B, 2 * pairs, 3, pixels, pixels) in [0, 1], the two of a pair side by side, and the pose
    about the picture's middle that carries each pair's first frame onto its second, (B, pairs, 4), in halves of what
    the frames show.
    """
    first = (uniform(clips.seeds, 7, pairs) * (FRAMES - 1)).floor()
    indices = torch.stack([first, first + 1], dim=-1).flatten(1)
    motion = torch.where(clips.motion < VIEWS, clips.motion, integer(clips.seeds, 8, VIEWS))
    whole = camera_poses(motion, clips.speed_factor, indices / clips.fps[:, None])
    points = grid(pixels, reach, clips.seeds.device)
    frames = _show(clips, (whole, whole), torch.zeros_like(clips.centre), points, brush)
    shrunk = whole / torch.tensor([reach, reach, 1.0, 1.0], device=points.device)
    return frames, between(shrunk[:, ::2], shrunk[:, 1::2])


def frame_indices(count: int, frames: int, device: torch.device) -> Tensor:
    """Indices 0 .. frames - 1 for each of `count` clips, (count, frames)."""
    return torch.arange(frames, device=device).expand(count, frames)


def shape_mask(clips: Clips, pixels: int = PIXELS) -> Tensor:
    """A disc over the named thing in frame 0, a little larger than it: (B, pixels, pixels) in [0, 1]."""
    points = grid(pixels, 1.0, clips.seeds.device)
    distance = (points[None] - clips.centre[:, None, None]).norm(dim=-1)
    return torch.sigmoid((clips.radius[:, None, None] * 1.15 - distance) / PIXEL)
