"""Engines ahead of time: every chosen component of a model, for one size."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from ..common.device import cuda_arch
from ..common.errors import BackendUnavailableError, InputError
from ..engine_builder.backends.base import Report
from ..engine_builder.build.build import BuildResult, find_engine
from ..engine_builder.build.build_process import BuildProcess
from ..engine_builder.graph.quantize import check_quantizable
from ..engine_builder.graph.recorded_calls import RECORDED, Calibration
from ..pipeline.models.registry import FAMILIES
from ..pipeline.request import ClipSize
from .calibration import CalibrationData, calibration_of, record
from .clip_sizes import clip_sizes
from .engines.engine_set import EngineSet
from .engines.messages import precision

ALL = "all"


@dataclass(frozen=True)
class Prebuild:
    """Components to build, their size in pixels and frames, and whether to rebuild stored ones.

    With the shape policy `presets`, width, height and num_frames are ignored: the presets are built.
    `arch` is the GPU architecture to build for, such as `sm_89`, if it is not this machine's. int8 and fp8 take their
    scales from `calibration_data`.
    """

    components: tuple[str, ...]
    width: int
    height: int
    num_frames: int
    force: bool = False
    arch: str | None = None
    calibration_data: CalibrationData | None = None


def component_names() -> list[str]:
    """The components that any family can compile."""
    return list(dict.fromkeys(name for family in FAMILIES for name in family.engine_components))


def prebuild(engines: EngineSet, job: Prebuild, report: Report) -> list[str]:
    """Builds missing engines and returns a line for each component; `report` is called with the whole job's fraction.

    Raises InputError for a component that the model does not have, EngineError as soon as one cannot be
    built: those before it stay.
    """
    for component in set(job.components) - set(engines.model.engine_components):
        known = ", ".join(engines.model.engine_components)
        raise InputError(f"The networks to compile are {known}, found {component!r:.80}.")
    count = len(job.components)
    size = next(iter(engines.policy.presets), ClipSize(job.width, job.height, job.num_frames))
    sizes = clip_sizes(engines.model, *size)
    lines = []
    with ExitStack() as stack:
        calibrations = _calibrations(engines, job, size, stack, report)
        process = stack.enter_context(BuildProcess())
        engines.builds.make_room()
        for number, component in enumerate(job.components):

            def tell(stage: str, done: float, number: int = number) -> None:
                report(stage, (number + done) / count)

            calibration = calibrations.get(component)
            result = engines.build(
                component, sizes, process, force=job.force, arch=job.arch, report=tell, calibration=calibration
            )
            lines.append(_line(component, result))
    report("done", 1.0)
    return lines


def _calibrations(
    engines: EngineSet, job: Prebuild, size: ClipSize, stack: ExitStack, report: Report
) -> dict[str, Calibration]:
    """Calibrations of the job's denoisers, in the store until `stack` ends; empty without int8 and fp8.

    Those whose products are rounded as they multiply need none, and are compared on them where pictures are given.
    Clips are recorded only where an engine is to be built with them. Raises InputError for unused pictures, and for
    missing ones; EngineError, before any recording, for a GPU, a backend or an installation that cannot use them.
    """
    quantized, denoisers = engines.policy.quantized, set(job.components) & set(engines.model.denoisers)
    if quantized is None and job.calibration_data is not None:
        raise InputError(f"Pictures to take scales from are for int8 and fp8, found {engines.precision}.")
    scaled = {denoiser for denoiser in denoisers if not engines.catalog.roundings(denoiser)}
    if quantized is None or not denoisers:
        return {}
    if job.calibration_data is None:
        if scaled:
            raise InputError(f"{quantized} takes its scales from pictures, found none.")
        return {}
    arch = job.arch or cuda_arch(engines.device)
    if scaled and arch is None:
        raise BackendUnavailableError(f"{quantized} is for TensorRT on NVIDIA GPUs, found none to build for: name one.")
    folder = stack.enter_context(engines.store.staging())
    calibrations = {denoiser: calibration_of(denoiser, job.calibration_data, size, folder) for denoiser in denoisers}
    sizes = clip_sizes(engines.model, *size)
    request = partial(engines.catalog.request, sizes=sizes, arch=job.arch)
    requests = [request(denoiser, calibration=each) for denoiser, each in calibrations.items()]
    if not all([find_engine(request, engines.store) for request in requests]) or job.force:
        if scaled and arch is not None:
            check_quantizable(quantized, arch)
        record(engines, job.calibration_data, size, folder, lambda done, count: report("record clips", 0.0))
    return calibrations


def _line(component: str, result: BuildResult) -> str:
    manifest = result.plan.manifest
    how = "already there" if result.reused else f"built in {manifest.build_s:.1f} s"
    verdict, size_mb = manifest.verdict, manifest.size_bytes / 1e6
    match = "unverified here" if verdict is None else f"cosine {verdict.cosine:.7f}, {verdict.snr_db:.0f} dB"
    match += " in recorded clips" if verdict is not None and RECORDED in manifest.files else ""
    where = f"{manifest.target.backend} for {manifest.target.arch}"
    return f"{component}: {how} by {where}, {precision(manifest)}, {size_mb:.1f} MB, {match}"
