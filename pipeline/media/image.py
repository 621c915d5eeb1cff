"""The picture that a clip starts from: checked, made RGB, cropped and scaled as the reference does."""

from __future__ import annotations

import math

import torch
from PIL import Image

from ...common.errors import InputError

_MAX_PIXELS = 1 << 28


def picture_from_tensor(image: torch.Tensor) -> Image.Image:
    """One RGB picture from float [1, height, width, channels] or [height, width, channels] in 0..1.

    Grey is repeated and transparency laid over white. Raises InputError for a batch, for another shape,
    and for values that are not finite.
    """
    if image.ndim == 4 and image.shape[0] != 1:
        raise InputError(f"Expected one picture, found a batch of {image.shape[0]}: choose one of them first.")
    pixels = image[0] if image.ndim == 4 else image
    if pixels.ndim != 3 or pixels.shape[-1] not in (1, 3, 4) or 0 in pixels.shape:
        raise InputError(f"Expected a picture as [height, width, 1, 3 or 4 channels], found {list(image.shape)}.")
    _check_area(pixels.shape[1], pixels.shape[0])
    pixels = pixels.detach().float().cpu()
    if not bool(torch.isfinite(pixels).all()):
        raise InputError("Expected a picture of finite values, found NaN or infinity.")
    levels = (pixels.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return rgb(Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels))


def rgb(picture: Image.Image) -> Image.Image:
    """The picture in 8-bit RGB: 16-bit grey is scaled down, transparency laid over white."""
    _check_area(picture.width, picture.height)
    if picture.mode.startswith("I;16") or picture.mode == "I":  # PIL would clip to 255 instead of scaling
        picture = picture.convert("I").point(lambda level: level / 257).convert("L")
        picture.info.pop("transparency", None)  # a level of 16 bits, which would be read as one of 8
    if "A" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture.convert("RGB")


def cover(picture: Image.Image, width: int, height: int) -> Image.Image:
    """Scales until the picture just covers width x height (pixels), then crops the middle.

    Box filter and rounding as I2VGenXLPipeline's, except that it can come out a pixel short and this not.
    Raises InputError for a strip so long and thin that scaling it would fill the memory.
    """
    scale = min(picture.width / width, picture.height / height)
    scaled_width = max(width, math.floor(picture.width / scale))
    scaled_height = max(height, math.floor(picture.height / scale))
    if scaled_width * scaled_height > _MAX_PIXELS:
        raise InputError(
            f"Expected a picture less long and thin: {picture.width}x{picture.height} would cover {width}x{height} "
            f"only at {scaled_width}x{scaled_height}."
        )
    scaled = picture.resize((scaled_width, scaled_height), Image.Resampling.BOX)
    left, top = (scaled_width - width) // 2, (scaled_height - height) // 2
    return scaled.crop((left, top, left + width, top + height))


def crop_to_aspect(picture: Image.Image, width: int, height: int) -> Image.Image:
    """The largest part in the middle that has the aspect ratio of width x height, in the picture's own pixels."""
    scale = min(picture.width / width, picture.height / height)
    part_width, part_height = (max(1, round(side * scale)) for side in (width, height))
    left, top = (picture.width - part_width) // 2, (picture.height - part_height) // 2
    return picture.crop((left, top, left + part_width, top + part_height))


def middle_square(picture: Image.Image, side: int) -> Image.Image:
    """The picture scaled until its shorter side has `side` pixels, cropped to the middle, as CLIP's processor does."""
    scale = side / min(picture.size)
    width, height = (side if each == min(picture.size) else int(each * scale) for each in picture.size)
    left, top = (width - side) // 2, (height - side) // 2
    return picture.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + side, top + side))


def antialiased(image: torch.Tensor, side: int) -> torch.Tensor:
    """An image [1, channels, height, width] scaled to side x side: blurred by what it shrinks, then bicubic.

    Kernel and sampling as StableVideoDiffusionPipeline's before its CLIP.
    """
    for axis in (-1, -2):
        image = _blurred(image, axis, max((image.shape[axis] / side - 1) / 2, 0.001))
    return torch.nn.functional.interpolate(image, (side, side), mode="bicubic", align_corners=True)


def _blurred(image: torch.Tensor, axis: int, sigma: float) -> torch.Tensor:
    """A Gaussian of `sigma` pixels along one axis, cut off at twice that on either side."""
    radius = max(int(4 * sigma), 3) // 2
    kernel = torch.exp(-((torch.arange(-radius, radius + 1) / sigma) ** 2) / 2)
    shape = (1, 1, -1, 1) if axis == -2 else (1, 1, 1, -1)
    border = (0, 0, radius, radius) if axis == -2 else (radius, radius, 0, 0)
    mode = "reflect" if image.shape[axis] > radius else "replicate"
    padded = torch.nn.functional.pad(image.transpose(0, 1), border, mode=mode)
    return torch.nn.functional.conv2d(padded, (kernel / kernel.sum()).reshape(shape)).transpose(0, 1)


def to_unit_tensor(picture: Image.Image) -> torch.Tensor:
    """Float32 [1, 3, height, width] in 0..1."""
    flat = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return flat.reshape(1, picture.height, picture.width, 3).permute(0, 3, 1, 2).float() / 255


def _check_area(width: int, height: int) -> None:
    if width * height > _MAX_PIXELS:
        raise InputError(f"Expected a picture of at most {_MAX_PIXELS} pixels, found {width}x{height}.")
