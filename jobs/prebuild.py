"""Engines ahead of time: every chosen component of a model, for one size."""

from __future__ import annotations

from dataclasses import dataclass

from ..engine_builder.backends.base import Report
from ..engine_builder.build import BuildResult
from ..engine_builder.worker import BuildProcess
from ..pipeline.models.registry import FAMILIES
from .engines import EngineSet, clip_sizes

ALL = "all"


@dataclass(frozen=True)
class Prebuild:
    """Which components to build, for which size in pixels and frames, and whether again if they are there."""

    components: tuple[str, ...]
    width: int
    height: int
    num_frames: int
    force: bool = False


def component_names() -> list[str]:
    """The components that any family can compile."""
    return list(dict.fromkeys(name for family in FAMILIES.values() for name in family.engine_components))


def prebuild(engines: EngineSet, job: Prebuild, report: Report) -> list[str]:
    """Builds what is missing and returns a line for each component; `report` hears the whole job's fraction.

    Raises EngineError as soon as one cannot be built: those before it stay.
    """
    count = len(job.components)
    sizes = clip_sizes(engines.model, job.width, job.height, job.num_frames)
    lines = []
    with BuildProcess() as process:
        for number, component in enumerate(job.components):

            def tell(stage: str, done: float, number: int = number) -> None:
                report(stage, (number + done) / count)

            result = engines.build(component, sizes, process, force=job.force, report=tell)
            lines.append(_line(component, result))
    report("done", 1.0)
    return lines


def _line(component: str, result: BuildResult) -> str:
    manifest = result.plan.manifest
    how = "already there" if result.reused else f"built in {manifest.build_s:.1f} s"
    size_mb = manifest.size_bytes / 1e6
    return (
        f"{component}: {how} by {manifest.target.backend}, {manifest.spec.precision}, {size_mb:.1f} MB, "
        f"cosine {manifest.verdict.cosine:.7f}, {manifest.verdict.snr_db:.0f} dB"
    )
