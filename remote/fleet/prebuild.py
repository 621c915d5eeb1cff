"""Engines ahead of time: the workflow runs once on each kind of GPU, told to build what is missing.

Engines are named by the kind of GPU among others, so that one store, on a folder that all machines share, takes them
all. Clips and records of these runs lie in `.jobs/prebuilt`, away from those of the batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from ...common.errors import InputError
from ..batch.records import RECORDS
from ..batch.workflow import Workflow
from .clip_job import ClipJob
from .crew import Slot
from .shared_folder import save_workflow

PREBUILT = "prebuilt"
ON_MISSING, BUILD = "on_missing", "build"


def prebuild_folder(out: Path) -> Path:
    """Where clips and records of such runs lie."""
    return out / RECORDS / PREBUILT


def building(workflow: Workflow) -> Workflow:
    """The workflow whose nodes build what engine is missing; raises InputError where no node has that choice."""
    prompt = {
        node_id: {**node, "inputs": {**node["inputs"], ON_MISSING: BUILD}}
        for node_id, node in workflow.prompt.items()
        if ON_MISSING in node["inputs"]
    }
    if not prompt:
        raise InputError(f"Expected a node with the input {ON_MISSING} that could build engines, found none.")
    return replace(workflow, prompt={**workflow.prompt, **prompt})


def prebuild_jobs(out: Path, workflow: Workflow, job: ClipJob, slots: Iterable[Slot]) -> list[ClipJob]:
    """One job for each kind of GPU among the places, made of the first of the batch's."""
    folder = prebuild_folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    digest = save_workflow(folder, building(workflow))
    jobs = []
    for kind in sorted({slot.kind for slot in slots}):
        key = sha256(f"{kind} {job.picture_digest} {digest}".encode()).hexdigest()
        jobs.append(replace(job, key=key, file_stem=f"{kind}-{key[:8]}", workflow_digest=digest, kind=kind))
    return jobs
