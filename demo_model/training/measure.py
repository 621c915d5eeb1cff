"""Motion of a clip, measured from its frames alone, and quality of its frames.

Motion is found by aligning each frame with the next (Lucas-Kanade with shift, scale and rotation, coarse
to fine, robustly weighted) over the whole view or over a named shape's disc, which moves along.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .motion import PIXEL, content_origin, direction
from .painting import grid

LEVELS = ((32, 8), (64, 6), (128, 4))  # edge in pixels, iterations
RESIDUAL = 0.08  # differences well above this count little
VIEW_RADIUS, SHAPE_RADIUS = 45.0, 18.0  # pixels at which scale and angle are compared with shifts


@dataclass(frozen=True)
class Track:
    """Motion from frame to frame: poses (B, F - 1, 4) as in `motion`, shifts in half-widths."""

    steps: Tensor

    def total(self, radius: float) -> Tensor:
        """Sum over the clip in pixels at 128 x 128: shift x, shift y, scale and angle at a radius, (B, 4)."""
        unit = torch.tensor([1 / PIXEL, 1 / PIXEL, radius, radius], device=self.steps.device)
        return self.steps.sum(1) * unit

    def speed(self, radius: float) -> Tensor:
        """Pixels a frame, (B,): the length of the mean step."""
        return self.total(radius).norm(dim=-1) / self.steps.shape[1]


def grey(frames: Tensor) -> Tensor:
    """Brightness of (..., 3, H, W)."""
    weights = torch.tensor([0.299, 0.587, 0.114], device=frames.device)
    return (frames * weights[:, None, None]).sum(-3)


def _features(frames: Tensor) -> Tensor:
    """Colour and brightness, smoothed a little: (B, 3, H, W) -> (B, 3, H, W)."""
    kernel = torch.tensor([1.0, 2.0, 1.0], device=frames.device) / 4
    smooth = F.conv2d(
        F.pad(frames, (1, 1, 1, 1), mode="replicate"), (kernel[:, None] * kernel).expand(3, 1, 3, 3), groups=3
    )
    return smooth


def _sample(images: Tensor, where: Tensor) -> Tensor:
    return F.grid_sample(images, where, mode="bilinear", padding_mode="border", align_corners=False)


def _gradients(images: Tensor) -> tuple[Tensor, Tensor]:
    """Change per half-width along x and y."""
    wide = F.pad(images, (1, 1, 1, 1), mode="replicate")
    scale = images.shape[-1] / 4
    return (wide[..., 1:-1, 2:] - wide[..., 1:-1, :-2]) * scale, (wide[..., 2:, 1:-1] - wide[..., :-2, 1:-1]) * scale


def destination(points: Tensor, pose: Tensor, centre: Tensor) -> Tensor:
    """Destination of the content at points: pose (B, 4), centre (B, 2) -> (B, H, W, 2)."""
    offset = points - centre[:, None, None]
    grow = torch.exp(pose[:, 2])[:, None, None]
    cos, sin = torch.cos(pose[:, 3])[:, None, None] * grow, torch.sin(pose[:, 3])[:, None, None] * grow
    x = cos * offset[..., 0] - sin * offset[..., 1]
    y = sin * offset[..., 0] + cos * offset[..., 1]
    return torch.stack([x, y], -1) + (centre + pose[:, :2])[:, None, None]


def _refine(first: Tensor, second: Tensor, weight: Tensor, centre: Tensor, pose: Tensor) -> Tensor:
    """One Gauss-Newton step of the pose that carries `first` onto `second`."""
    points = grid(first.shape[-1], 1.0, first.device)
    where = destination(points, pose, centre)
    error = _sample(second, where) - first
    along, down = (_sample(part, where) for part in _gradients(second))
    arm = where - (centre + pose[:, :2])[:, None, None]
    x, y = arm[:, None, ..., 0], arm[:, None, ..., 1]
    columns = torch.stack([along, down, along * x + down * y, down * x - along * y], dim=-1)
    seen = (where.abs().amax(-1) < 1).float() * weight
    robust = (seen[:, None] / (1 + (error / RESIDUAL) ** 2) ** 2)[..., None]
    normal = torch.einsum("bchwi,bchwj->bij", columns * robust, columns)
    right = (columns * robust * error[..., None]).sum((1, 2, 3))
    ridge = normal.diagonal(dim1=1, dim2=2).mean(-1).clamp_min(1e-8)[:, None, None] * 1e-3
    step = torch.linalg.solve(normal + ridge * torch.eye(4, device=normal.device), right)
    return pose - step.clamp(-0.2, 0.2)


def align(first: Tensor, second: Tensor, weight: Tensor, centre: Tensor, pose: Tensor) -> Tensor:
    """Pose (B, 4) that carries frames `first` onto `second` (B, 3, H, W), weighted (B, H, W), from a first guess."""
    for edge, rounds in LEVELS:
        if edge > first.shape[-1]:
            continue
        size = (edge, edge)
        a, b = (_features(F.interpolate(image, size, mode="area")) for image in (first, second))
        level_weight = F.interpolate(weight[:, None], size, mode="area")[:, 0]
        for _ in range(rounds):
            pose = _refine(a, b, level_weight, centre, pose)
    return pose


@torch.no_grad()
def track(frames: Tensor, mask: Tensor | None = None, centre: Tensor | None = None) -> Track:
    """Follows the view, or a shape given by its mask (B, H, W) and centre (B, 2) in frame 0."""
    count, length, _, height, width = frames.shape
    view = mask is None or centre is None
    weight = torch.ones(count, height, width, device=frames.device) if mask is None else mask
    start = torch.zeros(count, 2, device=frames.device) if centre is None else centre
    pose = torch.zeros(count, 4, device=frames.device)
    so_far, steps = torch.zeros_like(pose), []
    points = grid(height, 1.0, frames.device)
    for index in range(length - 1):
        if not view:
            origin = content_origin(points, so_far[:, None], start)[:, 0]
            moved = F.grid_sample(weight[:, None], origin, padding_mode="zeros", align_corners=False)[:, 0]
        else:
            moved = weight
        middle = start if view else start + so_far[:, :2]
        pose = align(frames[:, index], frames[:, index + 1], moved, middle, pose)
        so_far = so_far + pose
        steps.append(pose)
    return Track(torch.stack(steps, dim=1))


def agrees(motion: str, total: Tensor, radius_ratio: float = 0.0) -> bool:
    """Whether a total (4,) has the direction of the motion's name: largest component, right sign, over a pixel."""
    wanted = torch.tensor(direction(motion), dtype=torch.float32)
    if not wanted.any():
        return bool(total.norm() < 3.0)
    largest = int(total.abs().argmax())
    return bool(wanted[largest] != 0 and wanted[largest] * total[largest].cpu() > 1.0)


def bounces(steps: Tensor) -> bool:
    """Whether a track (F - 1, 4) goes up first, and mostly up and down."""
    path = steps[:, :2].cumsum(0) / PIXEL
    reach = path.abs().amax(0)
    return bool(path[:, 1].min() < -3 and reach[1] > 1.5 * reach[0])


def carried_back(first: Tensor, second: Tensor, pose: Tensor) -> tuple[Tensor, Tensor]:
    """Difference of `second`, carried back along a pose (B, 4) of the view, from `first` (B, 3, H, W).

    Returns the difference (B, 3, H, W) and where both are seen (B, 1, H, W).
    """
    centre = torch.zeros(len(pose), 2, device=pose.device)
    where = destination(grid(first.shape[-1], 1.0, first.device), pose, centre)
    inside = (where.abs().amax(-1) < 1).float()
    return _sample(second, where) - first, inside[:, None]


def warping_error(frames: Tensor, steps: Tensor) -> Tensor:
    """Mean absolute difference between a frame and the next one carried back along the track, (B,)."""
    errors = []
    for index in range(frames.shape[1] - 1):
        gap, inside = carried_back(frames[:, index], frames[:, index + 1], steps[:, index])
        inside = inside[:, 0]
        errors.append((gap.abs().mean(1) * inside).sum((1, 2)) / inside.sum((1, 2)).clamp_min(1))
    return torch.stack(errors).mean(0)


def as_saved(frames: Tensor) -> Tensor:
    """Frames in [0, 1] as a file of 8 bits a channel keeps them."""
    return (frames.clamp(0, 1) * 255).round() / 255


def flicker(frames: Tensor) -> Tensor:
    """Mean absolute difference of adjacent frames, (B,)."""
    return (frames[:, 1:] - frames[:, :-1]).abs().mean((1, 2, 3, 4))


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal to noise ratio in dB for data in [0, 1]: (B, ...) -> (B,)."""
    error = (a - b).square().flatten(1).mean(1).clamp_min(1e-10)
    return -10 * torch.log10(error)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of (B, 3, H, W) in [0, 1] with a Gaussian window of 11 pixels, (B,)."""
    line = torch.exp(-((torch.arange(11, device=a.device) - 5.0) ** 2) / (2 * 1.5**2))
    window = (line[:, None] * line / line.sum() ** 2).expand(3, 1, 11, 11)

    def blur(image: Tensor) -> Tensor:
        return F.conv2d(image, window, groups=3)

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    shared = blur(a * b) - mean_a * mean_b
    top = (2 * mean_a * mean_b + 0.01**2) * (2 * shared + 0.03**2)
    return (top / ((mean_a**2 + mean_b**2 + 0.01**2) * (var_a + var_b + 0.03**2))).flatten(1).mean(1)


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's coefficient of two samples (N,), ties at their mean rank."""

    def ranks(values: Tensor) -> Tensor:
        return torch.stack([(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values]).double()

    ra, rb = ranks(a), ranks(b)
    return float(torch.corrcoef(torch.stack([ra, rb]))[0, 1])
