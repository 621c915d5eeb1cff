"""A job of a fleet and what became of it, as plain data that goes through JSON and back."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ..batch.job import Job, MadeFile

Verdict = Literal["done", "failed", "cancelled", "crashed", "broken"]


@dataclass(frozen=True)
class ClipJob:
    """One picture, or none, through one workflow; `key` is the digest of both.

    `file_stem` begins the names of its files. `kind` is the kind of GPU that has to make it, None for any.
    """

    key: str
    file_stem: str
    picture: str | None
    picture_digest: str | None
    workflow_digest: str
    kind: str | None = None

    @classmethod
    def of(cls, job: Job) -> ClipJob:
        """The job of a queue as one of a fleet."""
        picture = str(job.pictures[0].absolute()) if job.pictures else None
        return cls(job.key, job.file_stem, picture, job.picture_digest, job.workflow_digest)

    @classmethod
    def from_text(cls, text: str) -> ClipJob:
        """The job that `as_text` wrote."""
        return cls(**json.loads(text))

    def as_text(self) -> str:
        """The job as JSON."""
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Outcome:
    """What became of a try.

    `done`: its files are published, by this try or by a quicker one (`was_there`). `failed`: the clip cannot be made,
    for a reason of its own. `cancelled`: somebody asked for it. `crashed`: what makes clips ended over it. `broken`:
    the worker cannot make any clip, and the job has not begun.
    """

    verdict: Verdict
    worker: str
    error: str | None = None
    files: tuple[MadeFile, ...] = field(default=())
    elapsed_s: float | None = None
    was_there: bool = False

    @classmethod
    def from_text(cls, text: str) -> Outcome:
        """The outcome that `as_text` wrote."""
        content: dict[str, Any] = json.loads(text)
        return cls(**{**content, "files": tuple(MadeFile(**file) for file in content["files"])})

    def as_text(self) -> str:
        """The outcome as JSON."""
        return json.dumps(asdict(self))
