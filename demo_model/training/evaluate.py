"""Judges a checkpoint on held-out clips: one table of figures and contact sheets to look at."""

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .clips import (
    FRAMES,
    PIXELS,
    Clips,
    caption_rows,
    draw,
    frame_indices,
    held_out_seeds,
    render,
    shape_mask,
)
from .detail import detail_ratio, has_letters_of, letters_read, octave_energies
from .hashing import integer
from .measure import (
    SHAPE_RADIUS,
    VIEW_RADIUS,
    Track,
    agrees,
    as_saved,
    bounces,
    flicker,
    psnr,
    rank_correlation,
    ssim,
    track,
    warping_error,
)  # fmt: skip
from .networks import Networks
from .pictures import FIRST_SCENE, LANDSCAPE
from .sampler import decode, initial_noise, picture_latents, sample
from .scenes import PAGE, SCENES
from .sheets import save_sheet
from .vocabulary import CAMERA, MOTIONS, SHAPE, captions

log = logging.getLogger(__name__)
VIEW_MOTIONS = CAMERA[:8]
MOVES = SHAPE[:4]
OCTAVES = 4


@dataclass(frozen=True)
class Judge:
    """A checkpoint under judgement, with the settings of all its clips."""

    networks: Networks
    tokenizer: Any
    device: torch.device
    steps: int
    guidance: float
    batch: int = 50
    spacing: str = "leading"

    @property
    def pixels(self) -> int:
        """Edge of the checkpoint's clips."""
        return int(self.networks.vae.config["sample_size"])

    def animate(
        self, clips: Clips, prompts: list[str], negatives: list[str] | None = None, steps: int | None = None
    ) -> Tensor:
        """Generated frames (B, F, 3, H, W) for the first frames of clips."""
        made = []
        for start in range(0, len(prompts), self.batch):
            part = slice(start, start + self.batch)
            some = select(clips, part)
            noise = initial_noise(some.seeds, FRAMES, self.pixels)
            dtype = self.networks.unet.dtype
            made.append(
                sample(
                    self.networks,
                    self.tokenizer,
                    first_frames(some, self.pixels).to(dtype),
                    prompts[part],
                    some.fps,
                    noise,
                    steps or self.steps,
                    self.guidance,
                    negatives[part] if negatives else None,
                    self.spacing,
                )  # fmt: skip
            )
        return torch.cat(made)


def select(clips: Clips, part: slice) -> Clips:
    """A slice of every field."""
    return Clips(**{f.name: getattr(clips, f.name)[part] for f in dataclasses.fields(Clips)})


def in_parts(function: Callable[[Clips], Tensor], clips: Clips, size: int = 25) -> Tensor:
    """Applies a function to slices, to bound memory."""
    return torch.cat([function(select(clips, slice(i, i + size))) for i in range(0, len(clips.seeds), size)])


def first_frames(clips: Clips, pixels: int = PIXELS) -> Tensor:
    """The pictures (B, 3, pixels, pixels) that clips begin with."""
    return in_parts(
        lambda part: render(part, frame_indices(len(part.seeds), 1, part.seeds.device), pixels)[:, 0], clips
    )


def truth(clips: Clips, pixels: int = PIXELS) -> Tensor:
    """The procedural clips themselves, (B, F, 3, pixels, pixels)."""
    return in_parts(lambda part: render(part, frame_indices(len(part.seeds), FRAMES, part.seeds.device), pixels), clips)


def held_out(start: int, count: int, motions: tuple[str, ...], device: torch.device, **fixed: int) -> Clips:
    """Held-out clips that take the given motions in turn, with closed wordings; fixed fields are overridden."""
    clips = draw(held_out_seeds(start, count, device))
    rows = torch.tensor([MOTIONS.index(name) for name in motions], device=device)
    changes = {name: torch.full_like(clips.motion, value) for name, value in fixed.items()}
    return dataclasses.replace(
        clips, motion=rows.repeat(count // len(rows) + 1)[:count], wording=integer(clips.seeds, 2, 2), **changes
    )


def prompts_of(clips: Clips) -> list[str]:
    """The captions as text."""
    table = captions()
    return [table[row] for row in caption_rows(clips).tolist()]


def follow(frames: Tensor, clips: Clips) -> Track:
    """Tracks the named shape of clips that name one (all or none of a batch), else the view."""
    if bool(clips.names_a_shape.all()):
        return track(frames, shape_mask(clips, frames.shape[-1]), clips.centre)
    return track(frames)


def agreement(clips: Clips, tracked: Track) -> list[bool]:
    """Whether each clip moves as its caption says."""
    radius = SHAPE_RADIUS if bool(clips.names_a_shape.all()) else VIEW_RADIUS
    totals = tracked.total(radius).cpu()
    names = [MOTIONS[row] for row in clips.motion.tolist()]
    return [
        bounces(tracked.steps[i].cpu()) if name == "bounces" else agrees(name, totals[i])
        for i, name in enumerate(names)
    ]


def by_motion(clips: Clips, right: list[bool]) -> dict[str, float]:
    """Agreement of each motion, in per cent."""
    names = [MOTIONS[row] for row in clips.motion.tolist()]
    return {
        name: round(100 * sum(ok for ok, n in zip(right, names, strict=True) if n == name) / names.count(name), 1)
        for name in dict.fromkeys(names)
    }


def percent(right: list[bool]) -> float:
    return round(100 * sum(right) / len(right), 2)


def judge_camera(judge: Judge, count: int, out: Path) -> dict[str, Any]:
    """Direction, first frame and smoothness of pans, zooms and rotations."""
    clips = held_out(0, count, VIEW_MOTIONS, judge.device)
    prompts = prompts_of(clips)
    made, real = judge.animate(clips, prompts), truth(clips, judge.pixels)
    tracked, expected = follow(made, clips), follow(real, clips)
    right = agreement(clips, tracked)
    save_sheet(out / "camera.png", made[:16], prompts[:16], clips.fps[:16].tolist(), real[:16])
    wrong = [i for i, ok in enumerate(right) if not ok][:12]
    if wrong:
        save_sheet(out / "camera-wrong.png", made[wrong], [prompts[i] for i in wrong], clips.fps[wrong].tolist())
    first = psnr(made[:, 0], real[:, 0])
    return {
        "camera_agreement_percent": percent(right),
        "camera_by_motion": by_motion(clips, right),
        "camera_truth_percent": percent(agreement(clips, expected)),
        "first_frame_psnr_db": round(float(first.mean()), 2),
        "first_frame_psnr_worst_db": round(float(first.min()), 2),
        "last_frame_psnr_to_truth_db": round(float(psnr(made[:, -1], real[:, -1]).mean()), 2),
        **smoothness("", made, tracked),
        **smoothness("_truth", real, expected),
        **smoothness("_truth_through_vae", through_vae(judge, real), expected),
    }


def smoothness(name: str, frames: Tensor, tracked: Track) -> dict[str, float]:
    """Warping error along a track, also of the frames in 8 bits, and flicker, under keys with a suffix."""
    return {
        f"warping_error{name}": round(float(warping_error(frames, tracked.steps).mean()), 5),
        f"warping_error{name}_8bit": round(float(warping_error(as_saved(frames), tracked.steps).mean()), 5),
        f"flicker{name}": round(float(flicker(frames).mean()), 5),
    }


@torch.no_grad()
def through_vae(judge: Judge, frames: Tensor) -> Tensor:
    """Clips encoded and decoded frame by frame: the best that any generated clip can look."""
    coded = [decode(judge.networks, picture_latents(judge.networks, clip)[:, :, None])[:, 0] for clip in frames]
    return torch.stack(coded)


def judge_shapes(judge: Judge, count: int, out: Path) -> dict[str, Any]:
    """Figures on whether the named shape, and it alone, moves as its caption says."""
    figures: dict[str, Any] = {}
    for name, motions, start, share in (("moves", MOVES, 2000, count), ("actions", SHAPE[4:], 3000, count // 2)):
        clips = held_out(start, share, motions, judge.device)
        prompts = prompts_of(clips)
        made, real = judge.animate(clips, prompts), truth(clips, judge.pixels)
        right = agreement(clips, follow(made, clips))
        save_sheet(out / f"shape-{name}.png", made[:16], prompts[:16], clips.fps[:16].tolist(), real[:16])
        figures[f"shape_{name}_percent"] = percent(right)
        figures[f"shape_{name}_truth_percent"] = percent(agreement(clips, follow(real, clips)))
        figures[f"shape_{name}_by_motion"] = by_motion(clips, right)
    return figures


def judge_speed(judge: Judge, count: int, out: Path) -> dict[str, Any]:
    """Speed against the fps condition, against the adverb, and stillness."""
    clips = held_out(4000, count, VIEW_MOTIONS, judge.device, adverb=0)
    prompts = prompts_of(clips)
    speed = follow(judge.animate(clips, prompts), clips).speed(VIEW_RADIUS).cpu()
    figures: dict[str, Any] = {"speed_to_fps_rank_correlation": round(rank_correlation(speed, clips.fps.cpu()), 3)}
    for adverb, name in enumerate(("plain", "slowly", "quickly")):
        some = held_out(5000, max(8, count // 4), VIEW_MOTIONS, judge.device, adverb=adverb, fps=16)
        made = judge.animate(some, prompts_of(some))
        figures[f"speed_{name}_pixels_a_frame"] = round(float(follow(made, some).speed(VIEW_RADIUS).mean()), 3)
    still = held_out(6000, max(8, count // 2), ("still",), judge.device)
    made = judge.animate(still, prompts_of(still))
    steps = track(made).steps
    pace = Track(steps).total(VIEW_RADIUS)
    frame_pace = torch.stack(
        [Track(steps[:, k : k + 1]).total(VIEW_RADIUS).norm(dim=-1) for k in range(steps.shape[1])]
    )
    save_sheet(out / "still.png", made[:8], prompts_of(still)[:8], still.fps[:8].tolist())
    figures["still_pixels_a_frame_mean"] = round(float(frame_pace.mean()), 4)
    figures["still_pixels_a_frame_worst_clip"] = round(float(frame_pace.mean(0).max()), 4)
    figures["still_drift_pixels"] = round(float(pace.norm(dim=-1).mean()), 3)
    return figures


def judge_guidance(judge: Judge, count: int, out: Path) -> dict[str, Any]:
    """An open prompt with either direction as negative prompt; then prompt and negative prompt swapped."""
    clips = held_out(7000, count, ("pan left",), judge.device, fps=12, adverb=0)
    shift = {}
    cases = {
        "open, not left": ("the camera pans", "pan left"), "open, not right": ("the camera pans", "pan right"),
        "right, not left": ("pan right", "pan left"), "left, not right": ("pan left", "pan right"),
    }  # fmt: skip
    made = {}
    for name, (prompt, negative) in cases.items():
        made[name] = judge.animate(clips, [prompt] * count, [negative] * count)
        shift[name] = track(made[name]).total(VIEW_RADIUS)[:, :2].cpu()
    rows = torch.stack([frames[0] for frames in made.values()])
    save_sheet(out / "guidance.png", rows, list(made), [12] * len(made))
    gap = (shift["open, not left"] - shift["open, not right"]).norm(dim=-1)
    left = shift["open, not left"][:, 0] < shift["open, not right"][:, 0]
    swapped = (shift["right, not left"][:, 0] < 0) & (shift["left, not right"][:, 0] > 0)
    return {
        "guidance_open_prompt_direction_changes_percent": percent((left & (gap > 3)).tolist()),
        "guidance_swapped_direction_changes_percent": percent(swapped.tolist()),
    }


def judge_views(judge: Judge, out: Path) -> dict[str, Any]:
    """Sheets without a figure: landscapes that pan and zoom, and four prompts on one picture."""
    motions = ("pan left", "pan right", "zoom in", "zoom out", "rotate clockwise", "track left", "pan up", "still")
    clips = held_out(8000, 16, motions, judge.device, style=LANDSCAPE, fps=12, adverb=0)
    prompts = prompts_of(clips)
    save_sheet(
        out / "landscape.png", judge.animate(clips, prompts), prompts, clips.fps.tolist(), truth(clips, judge.pixels)
    )
    one = held_out(8100, 1, ("pan left",), judge.device, style=LANDSCAPE, fps=8)
    four = Clips(
        **{f.name: getattr(one, f.name).expand(4, *getattr(one, f.name).shape[1:]) for f in dataclasses.fields(Clips)}
    )  # noqa: E501
    told = ["pan left", "zoom in", "rotate clockwise", "still"]
    save_sheet(out / "four-prompts.png", judge.animate(four, told), told, [8] * 4)
    return {}


def judge_vae(judge: Judge, count: int) -> dict[str, Any]:
    """Reconstruction of held-out pictures through the autoencoder alone."""
    clips = draw(held_out_seeds(9000, count, judge.device))
    pictures = first_frames(clips, judge.pixels)
    with torch.no_grad():
        again = decode(judge.networks, picture_latents(judge.networks, pictures)[:, :, None])[:, 0]
    by_style = psnr(again, pictures)
    kept = octave_energies(again, OCTAVES).mean(0) / octave_energies(pictures, OCTAVES).mean(0)
    return {
        "vae_psnr_db": round(float(by_style.mean()), 2),
        "vae_psnr_worst_db": round(float(by_style.min()), 2),
        "vae_ssim": round(float(ssim(again, pictures).mean()), 4),
        "vae_ratio_by_octave": [round(float(x), 3) for x in kept],
        "vae_psnr_by_style": {str(s): round(float(by_style[clips.style == s].mean()), 2) for s in range(6)},
    }


def judge_detail(judge: Judge, count: int, out: Path) -> dict[str, Any]:
    """What stays of the finest detail of pictures that have some, and whether small letters can be read."""
    figures: dict[str, Any] = {}
    made_all, real_all = [], []
    for number, name in enumerate(SCENES):
        clips = held_out(10_000 + 1000 * number, count, VIEW_MOTIONS, judge.device, style=FIRST_SCENE + number)
        if number == PAGE:
            clips = held_out(10_000 + 1000 * number, 16 * count, VIEW_MOTIONS, judge.device, style=FIRST_SCENE + PAGE)
            clips = chosen(clips, has_letters_of(clips), count)
        prompts = prompts_of(clips)
        made, real = judge.animate(clips, prompts), truth(clips, judge.pixels)
        save_sheet(out / f"detail-{name}.png", made[:8], prompts[:8], clips.fps[:8].tolist(), real[:8])
        figures[f"detail_{name}_ratio"] = round(detail_ratio(made, real), 3)
        figures[f"detail_{name}_first_frame_db"] = round(float(psnr(made[:, 0], real[:, 0]).mean()), 2)
        if number == PAGE:
            figures["letters_read_percent"] = round(100 * letters_read(clips, made, real), 1)
            figures["letters_read_through_vae_percent"] = round(
                100 * letters_read(clips, through_vae(judge, real), real), 1
            )
        made_all.append(made)
        real_all.append(real)
    return {"detail_ratio": round(detail_ratio(torch.cat(made_all), torch.cat(real_all)), 3), **figures}


def chosen(clips: Clips, which: Tensor, count: int) -> Clips:
    """The first of those for which `which` (B,) holds."""
    rows = which.nonzero()[:count, 0]
    return Clips(**{f.name: getattr(clips, f.name)[rows] for f in dataclasses.fields(Clips)})


def compare(judge: Judge, others: dict[str, tuple[Judge, int]], count: int) -> dict[str, Any]:
    """PSNR and SSIM of frames of other settings against the judge's own."""
    clips = held_out(9500, count, VIEW_MOTIONS, judge.device)
    prompts = prompts_of(clips)
    reference = judge.animate(clips, prompts)
    figures = {}
    for name, (other, steps) in others.items():
        made = other.animate(clips, prompts, steps=steps)
        flat = psnr(made.flatten(0, 1), reference.flatten(0, 1))
        same = ssim(made.flatten(0, 1), reference.flatten(0, 1))
        figures[name] = {
            "psnr_mean_db": round(float(flat.mean()), 2), "psnr_worst_db": round(float(flat.min()), 2),
            "ssim_mean": round(float(same.mean()), 4), "ssim_worst": round(float(same.min()), 4),
        }  # fmt: skip
    return figures


PARTS: dict[str, Callable[[Judge, int, Path], dict[str, Any]]] = {
    "vae": lambda judge, count, out: judge_vae(judge, max(12, count // 2)),
    "camera": judge_camera,
    "shapes": lambda judge, count, out: judge_shapes(judge, max(8, count // 2), out),
    "speed": lambda judge, count, out: judge_speed(judge, max(16, count // 4), out),
    "guidance": lambda judge, count, out: judge_guidance(judge, max(4, count // 10), out),
    "views": lambda judge, count, out: judge_views(judge, out),
    "detail": lambda judge, count, out: judge_detail(judge, max(8, count // 16), out),
}
"""Groups of figures, given the number of camera clips, of which the other groups are shares."""


def evaluate(judge: Judge, count: int, out: Path, parts: Sequence[str] = tuple(PARTS)) -> dict[str, Any]:
    """Every figure of those parts; sheets go to `out`."""
    began = time.monotonic()
    figures: dict[str, Any] = {"steps": judge.steps, "guidance": judge.guidance, "camera_clips": count}
    for part in parts:
        figures |= PARTS[part](judge, count, out)
    figures["evaluation_s"] = round(time.monotonic() - began, 1)
    return figures
