"""RIFE's networks in the form of version 4.25: the picture between two pictures (arXiv:2011.06294).

Five blocks refine one flow from coarse to fine. Each sees both pictures as the flow so far warps them, and adds
to the flow; the last says how to blend the two warped pictures. Tensors have the published names, so that
weights of 4.25 and later and of ComfyUI's loader fit. The flow and the positions of a warp stay in float32
whatever the network's precision: half precision places them a third of a pixel off at 1920 pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...common.errors import InputError
from ...common.spec import PRECISIONS
from ..fused.blocks import to_channels_last

SCALES = (16, 8, 4, 2, 1)
LITE_SCALES = (32, 16, 8, 4, 1)
LITE_WIDTH = 24
"""Width of the last block of the published lite weights, which were trained with coarser scales."""
STRIDE = 4
"""What a block's own convolutions shrink its input by."""
FLOW, MASK, STATE = 4, 1, 8
"""Channels of a block's output: two flows of two, the blend's logit, and features for the next block."""
WIDTHS = (96, 96, 80, 64, 48)
"""Widths of the pack's own weights: 2.76 million parameters."""
FEATURES = 4
FORM = "a network of the form of RIFE 4.25: encode.*, and five blocks"


class Estimate(NamedTuple):
    """One block's result: float32 flows in pixels (B, 4, H, W), x before y, from the picture between to the first
    and to the second; both pictures warped by it (B, 3, H, W); the blend's logit (B, 1, H, W)."""

    flow: Tensor
    first: Tensor
    second: Tensor
    logit: Tensor

    def blend(self) -> Tensor:
        """The picture between, (B, 3, H, W)."""
        return torch.lerp(self.second, self.first, torch.sigmoid(self.logit))


def middle(values: Tensor, scale: float, dim: int) -> Tensor:
    """What a bilinear shrinking by an even number looks at along a side: the middle two of every `scale` values.

    Shrunk by two these give the same, so nothing else needs to be computed. Of other scales all values are looked at.
    """
    if scale % 2 or scale == 2:
        return values
    many = int(scale)
    return values.unflatten(dim, (-1, many)).narrow(dim, many // 2 - 1, 2).flatten(dim - 1, dim)


def looked_at(images: Tensor, scale: float) -> Tensor:
    """The pixels of images (..., H, W) that their shrinking by a block's scale looks at, see `middle`."""
    return middle(middle(images, scale, -1), scale, -2)


def warp(images: Tensor, flow: Tensor, scale: float = 1) -> Tensor:
    """Looks up images (B, C, H, W) at every pixel plus its flow (B, 2, H, W), bilinear, edges held.

    With a scale only at the pixels that are `looked_at`, for which the flow is.
    """
    height, width = images.shape[-2:]
    x = middle(torch.arange(width, device=flow.device, dtype=torch.float32), scale, -1)
    y = middle(torch.arange(height, device=flow.device, dtype=torch.float32), scale, -1)[:, None]
    across = (x + flow[:, 0]) * (2 / (width - 1)) - 1
    down = (y + flow[:, 1]) * (2 / (height - 1)) - 1
    grid = torch.stack([across, down], dim=-1)
    seen = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=True)
    return seen.to(images.dtype)


def _resize(images: Tensor, factor: float) -> Tensor:
    return images if factor == 1 else F.interpolate(images, scale_factor=factor, mode="bilinear")


def _convolution(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, 1), nn.LeakyReLU(0.2))


class Features(nn.Module):
    """What the blocks know of a picture beside its pixels: image (B, 3, H, W) -> (B, channels, H, W)."""

    def __init__(self, channels: int = FEATURES) -> None:
        super().__init__()
        self.cnn0 = nn.Conv2d(3, 16, 3, 2, 1)
        self.cnn1 = nn.Conv2d(16, 16, 3, 1, 1)
        self.cnn2 = nn.Conv2d(16, 16, 3, 1, 1)
        self.cnn3 = nn.ConvTranspose2d(16, channels, 4, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        for layer in (self.cnn0, self.cnn1, self.cnn2):
            image = F.leaky_relu(layer(image), 0.2)
        return self.cnn3(image)


class Residual(nn.Module):
    """A convolution beside its input, with a learnt share for each channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, 1, 1)
        self.beta = nn.Parameter(torch.ones(1, width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x + self.conv(x) * self.beta, 0.2)


class Block(nn.Module):
    """One refinement at a scale: inputs (B, C, h, w) and flow at the pixels `looked_at` -> change of the flow,
    logit and state at full size."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.conv0 = nn.Sequential(_convolution(inputs, width // 2), _convolution(width // 2, width))
        self.convblock = nn.Sequential(*(Residual(width) for _ in range(8)))
        outputs = 4 * (FLOW + MASK + STATE)
        self.lastconv = nn.Sequential(nn.ConvTranspose2d(width, outputs, 4, 2, 1), nn.PixelShuffle(2))

    def forward(self, x: Tensor, flow: Tensor | None, scale: float) -> tuple[Tensor, Tensor, Tensor]:
        shrink = 1 if scale == 1 else scale if scale % 2 else 2  # see `looked_at`
        small = _resize(x, 1 / shrink)
        if flow is not None:
            small = torch.cat([small, _resize(flow, 1 / shrink).to(x.dtype) / scale], dim=1)
        parts = self.lastconv(self.convblock(self.conv0(small))).split([FLOW, MASK, STATE], dim=1)
        change, logit, state = (_resize(part, scale) for part in parts)  # each is used at other pixels
        return change.float() * scale, logit, state


class FlowNetwork(nn.Module):
    """The five blocks: two pictures, their features and the time between them -> the picture at that time.

    Sizes are multiples of `align`, which is the coarsest scale times a block's stride.
    """

    def __init__(
        self, widths: Sequence[int] = WIDTHS, features: int = FEATURES, scales: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        known = 2 * (3 + features)
        inputs = [known + 1] + [known + 1 + FLOW + MASK + STATE] * (len(widths) - 1)
        self.blocks = nn.ModuleList(Block(*sizes) for sizes in zip(inputs, widths, strict=True))
        self.scales = tuple(scales or (LITE_SCALES if widths[-1] == LITE_WIDTH else SCALES))

    @property
    def align(self) -> int:
        """What height and width are multiples of."""
        return int(max(self.scales) * STRIDE)

    def estimates(
        self, first: Tensor, second: Tensor, first_features: Tensor, second_features: Tensor, time: Tensor
    ) -> Iterator[Estimate]:
        """Every block's result in turn; time is (B, 1, 1, 1), 0 at the first picture and 1 at the second."""
        for flow, logit in self._flows(first, second, first_features, second_features, time):
            yield _estimate(first, second, flow, logit)

    def forward(
        self, first: Tensor, second: Tensor, first_features: Tensor, second_features: Tensor, time: Tensor
    ) -> Tensor:
        """The picture at a time (B, 1, 1, 1): pictures (B, 3, H, W) in [0, 1], features (B, C, H, W)."""
        *_, (flow, logit) = self._flows(first, second, first_features, second_features, time)
        return _estimate(first, second, flow, logit).blend()

    def _flows(
        self, first: Tensor, second: Tensor, first_features: Tensor, second_features: Tensor, time: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The flow and the logit after every block. A block's inputs are made only where it looks at them."""
        plane = time.to(first.dtype).expand(-1, 1, *first.shape[-2:])
        one, other = torch.cat([first, first_features], dim=1), torch.cat([second, second_features], dim=1)
        flow = logit = state = None
        for block, scale in zip(self.blocks, self.scales, strict=True):
            if flow is None or logit is None or state is None:
                parts, seen_flow = [first, second, first_features, second_features, plane], None
                x = torch.cat([looked_at(part, scale) for part in parts], dim=1)
            else:
                seen_flow = looked_at(flow, scale)
                a, b = warp(one, seen_flow[:, :2], scale), warp(other, seen_flow[:, 2:], scale)
                rest = [looked_at(part, scale) for part in (plane, logit, state)]
                x = torch.cat([a[:, :3], b[:, :3], a[:, 3:], b[:, 3:], *rest], dim=1)
            change, logit, state = block(x, seen_flow, scale)
            flow = change if flow is None else flow + change
            yield flow, logit


def _estimate(first: Tensor, second: Tensor, flow: Tensor, logit: Tensor) -> Estimate:
    """Both pictures (B, 3, H, W) warped by a flow (B, 4, H, W), beside it."""
    return Estimate(flow, warp(first, flow[:, :2]), warp(second, flow[:, 2:]), logit)


class Rife(nn.Module):
    """Features and flow together, in the published layout of tensors."""

    def __init__(
        self, widths: Sequence[int] = WIDTHS, features: int = FEATURES, scales: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        self.encode = Features(features)
        self.flow = FlowNetwork(widths, features, scales)

    def forward(self, first: Tensor, second: Tensor, time: Tensor) -> Tensor:
        """The picture at a time (B, 1, 1, 1) between two (B, 3, H, W) in [0, 1]."""
        return self.flow(first, second, self.encode(first), self.encode(second), time)

    def published(self) -> dict[str, Tensor]:
        """The tensors under their published names."""
        return {name.removeprefix("flow."): value for name, value in self.state_dict().items()}


def open_rife(tensors: Mapping[str, Tensor]) -> Rife:
    """The network that published tensors belong to, with these very tensors in it, in their dtype.

    Raises InputError when they have another form.
    """
    own = own_names(tensors)
    try:
        widths = [own[f"flow.blocks.{index}.conv0.1.0.weight"].shape[0] for index in range(len(SCALES))]
        features = own["encode.cnn3.weight"].shape[1]
    except KeyError as error:
        raise InputError(f"Expected {FORM}; found none of the tensor {error}.") from None
    with torch.device("meta"):  # no numbers are drawn that would then be thrown away
        network = Rife(widths, features)
    dtype = own["encode.cnn3.weight"].dtype
    try:
        network.load_state_dict({name: value.to(dtype) for name, value in own.items()}, assign=True)
    except RuntimeError as error:
        raise InputError(
            f"Expected {FORM}; found tensors that do not fit it: {str(error).splitlines()[-1].strip()}"
        ) from None
    return network.eval()


NETWORKS = {"features": "encode", "interpolation": "flow"}
"""The two networks by component: each is compiled alone, so that a picture's features are found once."""


def load_network(path: str, component: str, precision: str) -> nn.Module:
    """One of the `NETWORKS` with the tensors of a safetensors file, on the CPU, in that precision.

    Raises InputError when the file has another form.
    """
    from safetensors.torch import load_file

    return one_network(open_rife(load_file(path)), component, precision)


def one_network(network: Rife, component: str, precision: str) -> nn.Module:
    """One of the `NETWORKS` with tensors of its own, on the CPU, in that precision, with convolutions that compute
    channels last: a compiler leaves them as they are where the number of pictures is open."""
    part = copy.deepcopy(network.get_submodule(NETWORKS[component])).requires_grad_(False)
    return to_channels_last(part.to(getattr(torch, PRECISIONS[precision])))


def own_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published tensors under this module's names; what only training needs is left out."""
    own = {}
    for name, value in tensors.items():
        bare = name.removeprefix("module.").removeprefix("flownet.")
        if bare.startswith(("teacher.", "caltime.")):
            continue
        if bare.startswith("block") and not bare.startswith("blocks."):
            bare = f"blocks.{bare.removeprefix('block')}"
        own[bare if bare.startswith("encode.") else f"flow.{bare}"] = value
    return own
