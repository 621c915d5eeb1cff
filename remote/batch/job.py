"""A job: one picture, or none, through one workflow; and the files that come of it."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from ..comfyui.messages import printable

NAME_DIGITS = 8
"""Number of digits of a job's key in the names of its files."""


@dataclass(frozen=True)
class Job:
    """One picture, or none, through one workflow; `pictures` has several paths where the same picture has."""

    pictures: tuple[Path, ...]
    picture_digest: str | None
    workflow_digest: str
    stem: str

    @property
    def key(self) -> str:
        """Digest of the picture and the workflow, the same for every path of the picture."""
        return sha256(f"{self.picture_digest} {self.workflow_digest}".encode()).hexdigest()

    @property
    def file_stem(self) -> str:
        """The name of its files, their suffix aside: two jobs never share one."""
        return f"{self.stem}-{self.key[:NAME_DIGITS]}"

    @property
    def label(self) -> str:
        """Name of the job in reports."""
        return printable(self.pictures[0].name if self.pictures else self.stem)


@dataclass(frozen=True)
class MadeFile:
    """A file in the folder, with its size when complete."""

    name: str
    size_bytes: int
