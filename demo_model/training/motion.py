"""From a motion's name to where the picture's content is in each frame.

A pose is (dx, dy, log scale, angle): content at p in frame 0 is at c + s R(p - c) + d, in half-widths
of the picture, y downwards, angle clockwise on the screen, about a centre c. Distance per frame is
speed / fps, as a clip of the same scene sampled at a higher rate moves less from frame to frame.
"""

import torch
from torch import Tensor

from .vocabulary import MOTIONS

PIXEL = 2 / 128  # one pixel at 128 x 128, in half-widths
CAMERA_SPEED = 16.0  # pixels a second at 128 x 128, without an adverb
SHAPE_SPEED = 20.0
TRACK_FAR, TRACK_NEAR = 0.5, 1.5  # share of the speed that the far and the near layer take
RIM = 56.0  # radius in pixels at which a zoom or a rotation moves with the pan's speed
SHAPE_RIM = 24.0  # the same for a shape that grows or turns
BOUNCE_HEIGHT = 24.0  # pixels
BOUNCE_SECONDS = 1.0

# Unit pose of each motion; the bounce is not linear and is added apart.
_DIRECTIONS = {
    "pan left": (1, 0, 0, 0), "pan right": (-1, 0, 0, 0), "pan up": (0, 1, 0, 0), "pan down": (0, -1, 0, 0),
    "zoom in": (0, 0, 1, 0), "zoom out": (0, 0, -1, 0),
    "rotate clockwise": (0, 0, 0, 1), "rotate counterclockwise": (0, 0, 0, -1),
    "track left": (1, 0, 0, 0), "track right": (-1, 0, 0, 0), "still": (0, 0, 0, 0),
    "moves left": (-1, 0, 0, 0), "moves right": (1, 0, 0, 0), "moves up": (0, -1, 0, 0), "moves down": (0, 1, 0, 0),
    "grows": (0, 0, 1, 0), "shrinks": (0, 0, -1, 0),
    "turns clockwise": (0, 0, 0, 1), "turns counterclockwise": (0, 0, 0, -1), "bounces": (0, 0, 0, 0),
}  # fmt: skip


def _unit_poses(device: torch.device) -> Tensor:
    return torch.tensor([_DIRECTIONS[name] for name in MOTIONS], dtype=torch.float32, device=device)


def direction(motion: str) -> tuple[int, ...]:
    """The unit pose (dx, dy, log scale, angle) of a motion."""
    return _DIRECTIONS[motion]


def camera_poses(motion: Tensor, factor: Tensor, times: Tensor) -> Tensor:
    """Poses of the whole view: motion (B,), speed factor (B,), seconds (B, F) -> (B, F, 4)."""
    unit = torch.tensor([PIXEL, PIXEL, 1 / RIM, 1 / RIM], device=motion.device) * CAMERA_SPEED
    return _unit_poses(motion.device)[motion][:, None] * unit * (factor[:, None] * times)[..., None]


def shape_poses(motion: Tensor, factor: Tensor, times: Tensor) -> Tensor:
    """Poses of a shape about its own centre: motion (B,), speed factor (B,), seconds (B, F) -> (B, F, 4)."""
    rim = torch.tensor([PIXEL, PIXEL, 1 / SHAPE_RIM / 2, 1 / SHAPE_RIM], device=motion.device)
    elapsed = factor[:, None] * times
    poses = _unit_poses(motion.device)[motion][:, None] * rim * SHAPE_SPEED * elapsed[..., None]
    height = (torch.sin(torch.pi * elapsed / BOUNCE_SECONDS)).abs() * BOUNCE_HEIGHT * PIXEL
    bounces = (motion == MOTIONS.index("bounces"))[:, None]
    lift = torch.zeros_like(poses)
    lift[..., 1] = -height
    return torch.where(bounces[..., None], lift, poses)


def content_origin(points: Tensor, poses: Tensor, centre: Tensor) -> Tensor:
    """Position in frame 0 of the content at `points`: points (H, W, 2), poses (B, F, 4), centre (B, 2).

    Returns (B, F, H, W, 2), half-widths.
    """
    shift, log_scale, angle = poses[..., None, None, :2], poses[..., 2], poses[..., 3]
    about = centre[:, None, None, None, :]
    offset = points - shift - about
    shrink = torch.exp(-log_scale)[..., None, None]
    cos, sin = torch.cos(angle)[..., None, None], torch.sin(angle)[..., None, None]
    x = (cos * offset[..., 0] + sin * offset[..., 1]) * shrink
    y = (cos * offset[..., 1] - sin * offset[..., 0]) * shrink
    return torch.stack([x, y], dim=-1) + about


def between(first: Tensor, second: Tensor) -> Tensor:
    """The pose, about the picture's middle, that carries the content from pose `first` to pose `second`: (..., 4)."""
    log_scale, angle = (second - first)[..., 2], (second - first)[..., 3]
    grow = torch.exp(log_scale)
    cos, sin = torch.cos(angle) * grow, torch.sin(angle) * grow
    x = second[..., 0] - (cos * first[..., 0] - sin * first[..., 1])
    y = second[..., 1] - (sin * first[..., 0] + cos * first[..., 1])
    return torch.stack([x, y, log_scale, angle], dim=-1)
