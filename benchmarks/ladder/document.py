"""All results of a run of the ladder, as in its JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...common.errors import InputError
from .job import Job
from .row import FIGURES, Row, row_from_dict
from .variants import COMPILED, REFERENCE

SCHEMA = 1
BENCHMARK = "ladder"

Point = dict[str, Any]
"""One point of the sweep: its place, and its figures or the reason why it has none."""


@dataclass
class Document:
    """Rows in the order of the ladder, points of the sweep, and their origin."""

    job: Job
    machine: Mapping[str, Any]
    versions: Mapping[str, str | None]
    commit: str
    date: str
    options: Mapping[str, Any]
    rows: dict[str, Row] = field(default_factory=dict)
    sweep: list[Point] = field(default_factory=list)

    def to_json(self) -> str:
        """The document as text, with the meaning of every figure."""
        job = {**asdict(self.job), "digest": self.job.digest, "work": Path(self.job.work).name}
        content = {
            "benchmark": BENCHMARK,
            "schema": SCHEMA,
            "date": self.date,
            "commit": self.commit,
            "machine": self.machine,
            "versions": self.versions,
            "options": self.options,
            "job": {**job, "folder": Path(self.job.folder).name},
            "rows": [{**asdict(row), "ratios": self.ratios(row)} for row in self.rows.values()],
            "sweep": self.sweep,
            "figures": FIGURES,
        }
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"

    @property
    def where(self) -> str:
        """The machine that the ladder ran on, in a few words."""
        machine, threads = self.machine, self.machine.get("threads")
        return machine.get("gpu") or f"{machine.get('processor')}, {threads} thread{'' if threads == 1 else 's'}"

    def ratios(self, row: Row) -> dict[str, float]:
        """Speed of a hot clip relative to row 0, and to the best row of torch.compile."""
        own = row.figures.get("clip_hot_s")
        others = {"reference": self.hot_s(REFERENCE), "compiled": self.best_compiled_s()}
        return {name: round(other / own, 3) for name, other in others.items() if own and other}

    def tflop_per_s(self, row: Row) -> float | None:
        """The rate of a row's denoiser call, by the operations of the network as it is published."""
        work = next((each.figures["core_tflop"] for each in self.rows.values() if "core_tflop" in each.figures), None)
        step_ms = row.figures.get("step_ms")
        return 1000 * work / step_ms if work and step_ms else None

    def hot_s(self, name: str) -> float | None:
        """Seconds of a row's hot clip, if it has one."""
        return self.rows[name].figures.get("clip_hot_s") if name in self.rows else None

    def best_compiled_s(self) -> float | None:
        """Seconds of the fastest hot clip under torch.compile."""
        names = [name for name in self.rows if name.startswith(COMPILED.split("-")[0])]
        return min((seconds for name in names if (seconds := self.hot_s(name))), default=None)

    def adopt(self, text: str) -> None:
        """Takes over rows and sweep of an earlier run of the same job; raises InputError when it is none."""
        try:
            data = json.loads(text)
            rows, digest = data["rows"], data["job"]["digest"]
        except (ValueError, LookupError, TypeError) as error:
            raise InputError(f"Expected the JSON of an earlier ladder to go on from, found {error}.") from error
        if digest != self.job.digest:
            raise InputError("Expected an earlier ladder of this very job, found one of another clip.")
        for row in rows:
            row.pop("ratios", None)
            found = row_from_dict(row)
            self.rows[found.name] = found
        self.sweep = list(data.get("sweep", ()))

    def in_order(self, names: Sequence[str]) -> None:
        """Puts the rows into the order of `names`, others after them."""
        known = [name for name in names if name in self.rows]
        self.rows = {name: self.rows[name] for name in [*known, *(n for n in self.rows if n not in known)]}
