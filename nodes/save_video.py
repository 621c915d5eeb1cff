"""I2V Save Video."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from comfy_api.latest import io

from ..common.errors import I2VError
from ..engine_builder.store.manifest import file_digest
from ..pipeline.conditioning import MAX_SIDE
from ..pipeline.media.formats import FORMATS, MAX_FPS, MIN_FPS, Audio, VideoInfo, VideoOptions
from ..pipeline.media.sound import usable_sound
from ..pipeline.media.video import write_video
from ..runtime.saved_videos import SavedVideo, note, noted, video_key
from .host import folders, ui
from .host.kept_frames import keeping, what_is_kept
from .host.output_path import SavePlace, expanded
from .host.video import PlayedVideo
from .inputs import CATEGORY, sockets, verdict
from .limits import MostFloat

AUTO_CRF = -1.0
PAGE_FORMAT = "mp4-h264"
"""Format of the video shown on the node in place of a file that browsers cannot play."""
UNPLAYABLE = ("mkv-ffv1", "mp4-h265")


class SaveVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return ui.schema(
            node_id="I2VTRT_SaveVideo",
            display_name="I2V Save Video",
            category=CATEGORY,
            description="Writes frames into a video file (mp4, webm, mkv, webp, gif) in the output folder, with the "
            "workflow inside, and shows it.",
            search_aliases=["video combine", "save mp4", "save webm", "gif", "export video"],
            inputs=[
                io.Image.Input("frames", tooltip="One image a frame."),
                io.Float.Input(
                    "fps", default=16.0, min=MIN_FPS, max=MostFloat(MAX_FPS), step=0.01, tooltip="Frames per second."
                ),
                io.String.Input(
                    "filename_prefix", default="video/i2v", tooltip="Name in the output folder; / makes folders."
                ),
                io.Combo.Input(
                    "format",
                    options=list(FORMATS),
                    default=PAGE_FORMAT,
                    tooltip="mp4-h264 plays everywhere; mkv-ffv1 is lossless.",
                ),
                io.Float.Input(
                    "crf",
                    default=AUTO_CRF,
                    min=AUTO_CRF,
                    max=MostFloat(100.0),
                    step=1.0,
                    tooltip="Quality: lower is better and larger; -1 is the format's default.",
                ),
                io.Boolean.Input("pingpong", default=False, tooltip="Plays forward, then backward."),
                io.Audio.Input("audio", optional=True, tooltip="Cut to the video's length."),
                io.Boolean.Input(
                    "reuse_result",
                    default=False,
                    optional=True,
                    tooltip="Gives the file that is there already when the same frames were saved in the same way.",
                ),
            ],
            outputs=[io.Video.Output(display_name="video", tooltip="The same frames and sound, for any VIDEO node.")],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: Any = None) -> bool | str:
        return True if filename_prefix is None else verdict(lambda: expanded(filename_prefix, MAX_SIDE, MAX_SIDE))

    @classmethod
    @sockets(frames=torch.Tensor, audio=(Mapping, type(None)))
    def execute(
        cls,
        frames: torch.Tensor,
        fps: float,
        filename_prefix: str,
        format: str,
        crf: float,
        pingpong: bool,
        audio: Any = None,
        reuse_result: bool = False,
    ) -> io.NodeOutput:
        sound, notes = usable_sound(audio)
        with ui.sentences(), keeping(frames, fps, sound):
            used_crf, more = _crf(crf, format)
            options = VideoOptions(format, fps, used_crf, pingpong)
            progress = ui.Progress(cls.hidden.unique_id, len(frames))
            size = (frames.shape[2], frames.shape[1]) if frames.ndim == 4 else (0, 0)
            wish = _Wish(frames, options, sound, folders.metadata(cls.hidden), expanded(filename_prefix, *size))
            saved, lines = _saved(wish, progress, reuse=reuse_result)
        shown, unshown = _shown(frames, options, saved, sound, progress)
        lines += [*notes, *more, *unshown, *what_is_kept()]
        progress.say("\n".join(lines))
        result = ui.text_ui(lines, shown)
        return io.NodeOutput(PlayedVideo(frames, options.rate, sound, pingpong=pingpong), ui=result)


def _crf(value: float, key: str) -> tuple[float | None, list[str]]:
    """The quality of a widget for a format, which may end below the widget's scale, and a sentence where it does."""
    if value == AUTO_CRF:
        return None, []
    limits = FORMATS[key].crf_range if key in FORMATS else None
    if limits is None or not value > limits[1]:
        return value, []
    return limits[1], [f"crf {value:g} was taken as {limits[1]:g}, the greatest of {key}."]


class _Wish(NamedTuple):
    """All that a file is made from."""

    frames: torch.Tensor
    options: VideoOptions
    audio: Audio | None
    metadata: dict[str, Any]
    name: str


def _saved(wish: _Wish, progress: ui.Progress, *, reuse: bool) -> tuple[dict[str, str], list[str]]:
    """The file of a wish, written now or, with `reuse`, found; its name and subfolder, and lines on it."""
    key = video_key(*wish) if reuse else None
    found = None if key is None else noted(folders.saved_videos(), key)
    if found is not None and folders.digest_of_output(found.subfolder, found.filename) == found.sha256:
        told = [*found.lines, f"result cache hit: the file was there, {found.elapsed_s:.2f} s saved"]
        progress.step(1, 1)
        return {"filename": found.filename, "subfolder": found.subfolder}, told
    started = time.monotonic()
    with folders.save_place(wish.name, wish.options.spec.suffix, 0, 0) as place:
        info = write_video(
            wish.frames, place.path, wish.options, metadata=wish.metadata, audio=wish.audio, on_frame=progress.step
        )
        sha256 = "" if key is None else file_digest(place.path).sha256
    lines = [*_describe(info, place), *info.notes]
    if key is not None:
        elapsed_s = time.monotonic() - started
        note(folders.saved_videos(), key, SavedVideo(place.subfolder, place.filename, sha256, tuple(lines), elapsed_s))
    return {"filename": place.filename, "subfolder": place.subfolder}, lines


def _describe(info: VideoInfo, place: SavePlace) -> list[str]:
    name = f"{place.subfolder}/{place.filename}" if place.subfolder else place.filename
    size = f"{info.size_bytes / 1e6:.2f} MB"
    return [name, f"{info.width}x{info.height}, {info.num_frames} frames, {info.fps:g} fps, {size}"]


def _shown(
    frames: torch.Tensor, options: VideoOptions, saved: dict[str, str], sound: Audio | None, progress: ui.Progress
) -> tuple[dict[str, Any], list[str]]:
    """Entries of the saved file and of what the page plays, and a sentence where there is nothing to play.

    The page plays what `images` names: the saved file, or else a temporary one that browsers can play, with `files`
    for the saved one. No file is named twice, for the page counts all of them.
    """
    result = {**saved, "type": "output"}
    if options.format in UNPLAYABLE:
        try:
            return {"images": [_playable(frames, options, sound, progress)], "animated": (True,), "files": [result]}, []
        except I2VError as error:  # the clip itself is saved
            return {"files": [result]}, [f"The page has nothing to play: {error}"]
    # An animated gif or webp is an <img> to the page; `animated` would make it a <video>, which plays neither.
    return {"images": [result], "animated": (not options.spec.is_image or options.format == "webp",)}, []


def _playable(
    frames: torch.Tensor, options: VideoOptions, sound: Audio | None, progress: ui.Progress
) -> dict[str, str]:
    """The entry of a temporary copy that browsers can play."""
    playable = VideoOptions(PAGE_FORMAT, options.fps, None, options.pingpong)
    with folders.save_place("i2v_preview", playable.spec.suffix, 0, 0, temporary=True) as place:
        # The bar has reached its end with the file itself: this only lets an interruption through.
        write_video(
            frames, place.path, playable, audio=sound, on_frame=lambda *_: progress.say("save: what the page plays")
        )
    return {"filename": place.filename, "subfolder": place.subfolder, "type": "temp"}
