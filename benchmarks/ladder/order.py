"""Order for one of the ladder's processes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from .job import Job
from .variants import Variant


@dataclass(frozen=True)
class Order:
    """Order for a process: `kind` is `row`, `warm`, `sweep` or `checkpoint`. Times are `time.time()`."""

    kind: str
    job: Job
    variant: Variant
    rows: Path
    """The folder that rows are written to."""
    samples: int
    started_at: float
    """Start of the process."""
    began_at: float
    """Start of the ladder, for the seconds in lines of progress."""
    after_clip: bool = False
    """Whether interpolation and upscaling are measured too."""

    def to_json(self) -> str:
        """As text for another process."""
        return json.dumps({**asdict(self), "rows": str(self.rows)}, indent=1)


def order_from_json(text: str) -> Order:
    """The order that `Order.to_json` wrote."""
    data = json.loads(text)
    variant = data["variant"]
    rewrites = variant["rewrites"]
    variant = Variant(**{**variant, "rewrites": None if rewrites is None else tuple(rewrites)})
    return Order(**{**data, "job": Job(**data["job"]), "variant": variant, "rows": Path(data["rows"])})
