"""Engines ahead of time: every chosen component of a model, for one size."""

from __future__ import annotations

from dataclasses import dataclass

from ..engine_builder.backends.base import Report
from ..engine_builder.build import BuildResult
from ..engine_builder.errors import InputError
from ..engine_builder.worker import BuildProcess
from ..pipeline.models.registry import FAMILIES
from .engine_words import precision
from .engines import EngineSet, clip_sizes

ALL = "all"


@dataclass(frozen=True)
class Prebuild:
    """Which components to build, for which size in pixels and frames, and whether again if they are there.

    Under a policy of presets those are built for, and the size here is not.
    `arch` is the GPU architecture to build for, such as `sm_89`, if it is not this machine's.
    """

    components: tuple[str, ...]
    width: int
    height: int
    num_frames: int
    force: bool = False
    arch: str | None = None


def component_names() -> list[str]:
    """The components that any family can compile."""
    return list(dict.fromkeys(name for family in FAMILIES for name in family.engine_components))


def prebuild(engines: EngineSet, job: Prebuild, report: Report) -> list[str]:
    """Builds what is missing and returns a line for each component; `report` hears the whole job's fraction.

    Raises InputError for a component that the model does not have, EngineError as soon as one cannot be
    built: those before it stay.
    """
    for component in set(job.components) - set(engines.model.engine_components):
        known = ", ".join(engines.model.engine_components)
        raise InputError(f"The networks to compile are {known}, found {component!r:.80}.")
    count = len(job.components)
    size = next(iter(engines.policy.presets), (job.width, job.height, job.num_frames))
    sizes = clip_sizes(engines.model, *size)
    lines = []
    engines.make_room()
    with BuildProcess() as process:
        for number, component in enumerate(job.components):

            def tell(stage: str, done: float, number: int = number) -> None:
                report(stage, (number + done) / count)

            result = engines.build(component, sizes, process, force=job.force, arch=job.arch, report=tell)
            lines.append(_line(component, result))
    report("done", 1.0)
    return lines


def _line(component: str, result: BuildResult) -> str:
    manifest = result.plan.manifest
    how = "already there" if result.reused else f"built in {manifest.build_s:.1f} s"
    verdict, size_mb = manifest.verdict, manifest.size_bytes / 1e6
    match = "unverified here" if verdict is None else f"cosine {verdict.cosine:.7f}, {verdict.snr_db:.0f} dB"
    where = f"{manifest.target.backend} for {manifest.target.arch}"
    return f"{component}: {how} by {where}, {precision(manifest)}, {size_mb:.1f} MB, {match}"
