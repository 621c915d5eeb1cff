"""Row 0's clip on disk, for the other rows, which run in processes of their own and perhaps later."""

from __future__ import annotations

from pathlib import Path

from ...common.atomic_file import atomic_file
from ...pipeline.quality.similarity import frames_similarity, latents_similarity
from .job import Job
from .way import Clip


def reference_path(job: Job) -> Path:
    """Path of the reference of this job alone."""
    return job.work_folder / f"reference-{job.digest}.safetensors"


def save_reference(job: Job, clip: Clip) -> None:
    """Keeps latents and frames, in full precision."""
    from safetensors.torch import save_file

    with atomic_file(reference_path(job)) as temporary:
        tensors = {"latents": clip.latents.contiguous(), "frames": clip.frames.contiguous()}
        save_file(tensors, temporary, {"job": job.describes})


def against_reference(job: Job, clip: Clip) -> tuple[dict[str, float], tuple[str, ...]]:
    """The figures of similarity, or a note that there is no reference."""
    from safetensors.torch import load_file

    path = reference_path(job)
    if not path.is_file():
        return {}, ("It was not compared with row 0, which has made no clip of this job here.",)
    kept = load_file(path)
    similarity = {**latents_similarity(kept["latents"], clip.latents), **frames_similarity(kept["frames"], clip.frames)}
    return similarity, ()
