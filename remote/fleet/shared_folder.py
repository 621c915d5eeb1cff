"""What a fleet keeps beside its outputs, for every machine to read: workflows, pictures, and the lists of jobs.

Workflows and pictures are named by their digest, so that whoever is second to write one writes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

from ...common.atomic_file import publish_first
from ...common.errors import InputError, StorageError
from ..batch.records import RECORDS
from ..batch.workflow import Place, Workflow
from .clip_job import ClipJob

WORKFLOWS, PICTURES, LISTS = "workflows", "pictures", "lists"


def save_workflow(folder: Path, workflow: Workflow) -> str:
    """Keeps a workflow, without what goes beside its graph, and returns its digest."""
    place = workflow.picture and [workflow.picture.node_id, workflow.picture.name]
    text = json.dumps({"prompt": workflow.prompt, "picture": place})
    _publish(folder / RECORDS / WORKFLOWS / f"{workflow.digest}.json", text.encode())
    return workflow.digest


def load_workflow(folder: Path, digest: str) -> Workflow:
    """The workflow with that digest; raises InputError where it is missing or another one."""
    path = folder / RECORDS / WORKFLOWS / f"{digest}.json"
    try:
        content = json.loads(path.read_text("utf-8"))
        workflow = Workflow(content["prompt"], content["picture"] and Place(*content["picture"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} should hold the workflow of the job, but cannot be read: {error}.") from error
    if workflow.digest != digest:
        raise InputError(f"{path} should be the workflow that it was when the job began, but it has changed.")
    return workflow


def save_picture(folder: Path, content: bytes, suffix: str) -> Path:
    """Keeps a picture under its digest, and returns where."""
    path = folder / RECORDS / PICTURES / f"{sha256(content).hexdigest()}{suffix}"
    _publish(path, content)
    return path


def read_picture(job: ClipJob) -> bytes | None:
    """The job's picture, None without one; raises InputError where it is gone or has changed."""
    if job.picture is None:
        return None
    try:
        content = Path(job.picture).read_bytes()
    except OSError as error:
        raise InputError(f"Expected a picture at {job.picture}, found none: {error.strerror or error}.") from error
    if sha256(content).hexdigest() != job.picture_digest:
        raise InputError(f"{job.picture} should be the picture that it was when the job began, but it has changed.")
    return content


def save_list(folder: Path, jobs: Iterable[ClipJob]) -> None:
    """Keeps which jobs a run is about, for `fleet status`; the same list again writes nothing."""
    text = "".join(f"{job.key} {job.file_stem}\n" for job in jobs)
    _publish(
        folder / RECORDS / LISTS / f"{sha256(text.encode('utf-8', 'replace')).hexdigest()}.txt",
        text.encode("utf-8", "replace"),
    )


def read_lists(folder: Path) -> dict[str, str]:
    """Of every job of every run in the folder: its key and the beginning of its files' names."""
    found: dict[str, str] = {}
    for path in sorted((folder / RECORDS / LISTS).glob("*.txt")):
        found |= dict(line.split(" ", 1) for line in path.read_text("utf-8").splitlines())
    return found


def _publish(path: Path, content: bytes) -> None:
    if path.is_file():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{path.parent} should be a folder to write to: {error.strerror or error}.") from error
    publish_first(path, lambda temporary: temporary.write_bytes(content), is_flushed=False)
