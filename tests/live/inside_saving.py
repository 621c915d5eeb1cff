"""Frames that cannot be saved, previews that fail, and who is told what."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.model_management
import folder_paths
import latent_preview
import torch
from comfy_api.latest import Types
from comfy_execution.utils import CurrentNodeContext
from server import PromptServer

from i2v_tensorrt.common.errors import InputError, StorageError
from i2v_tensorrt.nodes.host import folders, preview, ui
from i2v_tensorrt.nodes.host.kept_frames import keeping, what_is_kept
from i2v_tensorrt.nodes.host.video import PlayedVideo
from i2v_tensorrt.pipeline.dummies.i2vgen_xl import write_tiny_checkpoint
from i2v_tensorrt.pipeline.media.reader import stream_frames
from i2v_tensorrt.pipeline.models.registry import open_model

FRAMES = (torch.arange(3 * 8 * 8 * 3).reshape(3, 8, 8, 3) % 256) / 255


@contextmanager
def output_at(path: Path) -> Iterator[None]:
    """ComfyUI's output folder, moved."""
    kept = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(path))
    try:
        yield
    finally:
        folder_paths.set_output_directory(kept)


def told_by(error: BaseException) -> str:
    """What `keeping` makes of an error in its block."""
    try:
        with keeping(FRAMES, 8.0, None):
            raise error
    except Exception as found:
        return f"{type(found).__name__}: {found}"


def case_frames_are_kept_in_the_output_folder_without_loss(folder: Path) -> None:
    with output_at(folder / "output"):
        told = told_by(InputError("The format is another."))
    assert told == (
        "InputError: The format is another. The frames are kept without loss: "
        "Load Video opens them as i2v_kept/frames_00001_.mkv [output]."
    )
    kept = list(stream_frames(folder / "output" / "i2v_kept" / "frames_00001_.mkv"))
    assert torch.equal((torch.stack(kept) * 255).round(), (FRAMES * 255).round())


def case_the_first_save_that_succeeds_tells_what_lies_kept(folder: Path) -> None:
    with output_at(folder / "output"):
        what_is_kept()
        assert what_is_kept() == [], "nothing has failed since"
        for _ in range(2):
            told_by(InputError("The format is another."))
        size = sum(path.stat().st_size for path in (folder / "output" / "i2v_kept").iterdir())
        (line,) = what_is_kept()
        assert line == (
            f"i2v_kept in the output folder holds 2 clips that could not be saved, {size / 1e6:.2f} MB: "
            "remove what you no longer need."
        )
        assert what_is_kept() == [], "it is told once"
        assert len(list((folder / "output" / "i2v_kept").iterdir())) == 2
        told_by(InputError("The format is another."))
        for path in (folder / "output" / "i2v_kept").iterdir():
            path.unlink()
        assert what_is_kept() == [], "somebody has tidied up"


def case_frames_go_to_the_temporary_folder_where_the_output_is_full_or_no_folder(folder: Path) -> None:
    (folder / "file").write_bytes(b"")
    with output_at(folder / "file"):
        told = told_by(StorageError("No space left on device."))
    assert "StorageError: No space left on device. The frames are kept without loss until ComfyUI starts again" in told
    assert "i2v_kept/frames_" in told and told.endswith(" [temp].")


def case_what_is_no_error_of_the_pack_becomes_one_and_an_interruption_stays(folder: Path) -> None:
    with output_at(folder / "output"):
        assert told_by(MemoryError()).startswith("StorageError: The video could not be saved: MemoryError(). The fr")
        interruption = comfy.model_management.InterruptProcessingException()
        try:
            with keeping(FRAMES, 8.0, None):
                raise interruption
        except BaseException as found:
            assert found is interruption
    assert len(list((folder / "output").rglob("*.mkv"))) == 1


def case_frames_that_no_file_holds_leave_the_sentence_alone(folder: Path) -> None:
    with output_at(folder / "output"):
        try:
            with keeping(torch.full((1, 8, 8, 3), float("nan")), float("nan"), None):
                raise InputError("Frames must hold finite values.")
        except InputError as error:
            assert str(error) == "Frames must hold finite values."
    assert not list((folder / "output").rglob("*.mkv"))


def case_comfyui_decides_on_a_link_out_of_its_output_folder(folder: Path) -> None:
    (folder / "drive").mkdir()
    (folder / "output").mkdir()
    (folder / "output" / "video").symlink_to(folder / "drive", target_is_directory=True)
    with output_at(folder / "output"):
        follows = folders.comfyui_saves_in("video/new")
        assert folders.comfyui_saves_in("plain")
        try:
            with folders.save_place("video/new/clip", ".mp4", 1, 1) as place:
                place.path.write_bytes(b"x")
        except InputError as error:
            assert not follows and "leads out of it" in str(error)
    assert (folder / "drive" / "new" / "clip_00001_.mp4").is_file() == follows


def case_a_video_that_nobody_asks_for_copies_no_frames(folder: Path) -> None:
    """And one that is asked for plays grey and transparent frames as ComfyUI's nodes take them."""
    frames = torch.rand(4, 8, 8, 4)
    video = PlayedVideo(frames, Fraction(8), None, pingpong=True)
    held = [each for each in vars(video).values() if isinstance(each, Types.VideoComponents)]
    assert held and all(each.images is frames for each in held)
    assert video.get_components().images.shape == (6, 8, 8, 3)
    grey = PlayedVideo(frames[..., :1], Fraction(8), None, pingpong=False).get_components().images
    assert torch.equal(grey, frames[..., :1].expand(-1, -1, -1, 3))
    plain = torch.rand(4, 8, 8, 3)
    assert PlayedVideo(plain, Fraction(8), None, pingpong=False).get_components().images is plain


class Lines(logging.Handler):
    """The warnings of the pack."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextmanager
def previews_by(get_previewer: Any) -> Iterator[list[str]]:
    """Another previewer in ComfyUI's place, as packs put theirs, and a server that nobody listens to."""
    kept, lines = latent_preview.get_previewer, Lines()
    latent_preview.get_previewer = get_previewer
    preview.log.addHandler(lines)
    try:
        with served(None):
            yield lines.lines
    finally:
        latent_preview.get_previewer = kept
        preview.log.removeHandler(lines)


@contextmanager
def served(client: str | None) -> Iterator[list[tuple[Any, ...]]]:
    """A server that notes what it is to send, in the middle of that client's prompt."""
    kept = PromptServer.__dict__.get("instance")
    sent: list[tuple[Any, ...]] = []

    def note(*words: Any) -> None:
        sent.append(words)

    PromptServer.instance = SimpleNamespace(client_id=client, send_sync=note, send_progress_text=note)
    try:
        with CurrentNodeContext("the prompt", "5", 0):
            yield sent
    finally:
        PromptServer.instance = kept


def failing(*_: Any) -> Any:
    raise ValueError("not enough values to unpack (expected 5, got 4)")


def case_a_preview_that_fails_ends_no_clip_and_is_told_once(folder: Path) -> None:
    model = open_model(write_tiny_checkpoint(folder / "tiny"))
    latents = torch.zeros(4, 4, 8, 8)
    decoders = (failing, lambda *_: "no picture", lambda *_: ("JPEG", None, 512))
    makers = [failing, *(lambda *_, d=d: SimpleNamespace(decode_latent_to_preview_image=d) for d in decoders)]
    for maker in makers:
        with previews_by(maker) as warnings:
            show = preview.previewer(model, 4, 8.0, None)
            assert [show(latents) for _ in range(3)] == [None] * 3
        assert len(warnings) == 1 and warnings[0].startswith("The clip is sampled without previews"), warnings
    with previews_by(latent_preview.get_previewer) as warnings:
        found = preview.previewer(model, 4, 8.0, None)(latents)
    assert warnings == [] and (found is None or found[0] == "JPEG")


def case_messages_go_to_whoever_queued_the_prompt_alone(folder: Path) -> None:
    model = open_model(write_tiny_checkpoint(folder / "tiny"))
    with served(None) as sent:  # ComfyUI sends to all where nobody is named
        ui.say("5", "denoise: step 1 of 2")
        preview.previewer(model, 4, 8.0, None)
    assert sent == []
    with served("a page") as sent:
        ui.say("5", "denoise: step 1 of 2")
        preview.previewer(model, 4, 8.0, {"id": "a workflow"})
    (text, to_node, to_page), (event, told, client) = sent
    assert (text, to_node, to_page) == ("denoise: step 1 of 2", "5", "a page")
    assert (event, client) == ("i2v_tensorrt.sheet", "a page")
    assert (told["prompt_id"], told["node"], told["workflow"]) == ("the prompt", "5", "a workflow")
