"""What a worker makes clips with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from json import dumps, loads
from pathlib import Path
from typing import Any, Protocol

from ...common.errors import I2VError
from .clip_job import ClipJob


class CrashedError(I2VError):
    """What makes clips ended over this one."""


class BrokenWorkerError(I2VError):
    """This worker cannot make any clip; the job is none the worse for it."""


@dataclass(frozen=True)
class WorkerSpec:
    """What every worker of a fleet is told; paths are the same on every machine.

    Args:
        out: the shared folder.
        maker: the name of a maker, `comfyui` or `stand-in`.
        base: the folder with ComfyUI's models and custom nodes, None for that of the ComfyUI itself.
        arguments: further arguments of ComfyUI's main.py.
        clip_s: how long a clip may take, in seconds.
        start_s: how long a ComfyUI may take to start, in seconds.
        extra_data: what goes beside the graph to ComfyUI; it is stored nowhere.
    """

    out: str
    maker: str = "comfyui"
    base: str | None = None
    arguments: tuple[str, ...] = ()
    clip_s: float = 3600.0
    start_s: float = 600.0
    extra_data: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def from_text(cls, text: str) -> WorkerSpec:
        """The spec that `as_text` wrote."""
        content = loads(text)
        return cls(**{**content, "arguments": tuple(content["arguments"])})

    def as_text(self) -> str:
        """The spec as JSON."""
        return dumps(asdict(self))


class Maker(Protocol):
    """Makes one clip at a time."""

    def make(self, job: ClipJob, folder: Path) -> list[Path]:
        """Makes the job's files in `folder`, and returns them in order.

        Raises BrokenWorkerError or CrashedError; any other I2VError or OSError is a fault of the job.
        """
        ...

    def interrupt(self) -> None:
        """Asks `make`, which runs in another thread, to end soon."""
        ...

    def close(self) -> None:
        """Ends what it has started."""
        ...
