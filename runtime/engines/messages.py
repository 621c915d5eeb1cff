"""Messages to the user on engines: the number built, the missing ones, and reasons why some are not built at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ...engine_builder.store.manifest import Manifest
from ...engine_builder.store.store import Plan

NOT_BUILT = "On a CPU engines save little;\nfor them, set on_missing to build."
"""In lines, for the page cuts a longer one in the middle of a word."""
LATER = "In eager PyTorch for now: engines are built\nwhen the queue is empty."
SWITCHED_OFF = "In eager PyTorch: building engines while the\nqueue is empty is switched off in the settings."
NAMED_FALLBACKS = 3
"""More than these are counted; the list in JSON names them all."""


def built(manifests: Sequence[Manifest], elapsed_s: float) -> str:
    """One sentence on engines that were built in one go, with the least similarity to eager PyTorch of them all."""
    one = len(manifests) == 1
    what = f"{manifests[0].spec.network.component} engine" if one else f"{len(manifests)} engines"
    cosines = [each.verdict.cosine for each in manifests if each.verdict is not None]
    match = f",\n{'' if one else 'least '}cosine {min(cosines):.5f}" if cosines else ""
    return f"{what} built in {elapsed_s:.1f} s{match}"


def precision(manifest: Manifest) -> str:
    """An engine's precision, that of its products where they are rounded, and its modules that compute in fp32."""
    names, spec = manifest.islands, manifest.spec
    inside = ", ".join(names) if len(names) <= NAMED_FALLBACKS else f"{len(names)} modules"
    rounded = f" with products in {spec.products}" if spec.products != spec.precision else ""
    return f"{spec.precision}{rounded}" + (f" (fp32 in {inside})" if names else "")


def missing(component: str, sizes: Mapping[str, int], stored: Sequence[Plan], store: Path) -> str:
    """Sentence on the dimensions in which the nearest engine does not fit, with the differences."""
    if not stored:
        return f"There is no engine for {component} in {store}: build one with the Engine Builder."
    nearest = min((plan.manifest.spec.profile for plan in stored), key=lambda profile: profile.distance(sizes))
    violations = nearest.violations(sizes)
    return (
        f"No engine of {len(stored)} for {component} fits: in the nearest, "
        f"{'; '.join(violations)} (a latent is 8 pixels)."
    )


def uncalibrated(component: str, precision: str) -> str:
    """Reason why an engine in int8 or fp8 is not built on the way to a clip, and the way to build one."""
    return (
        f"There is no {precision} engine for {component}, and its scales are taken from pictures: build it with the "
        "Engine Builder and pictures, or by `run.py engine build` with --calibrate."
    )


def stock(components: Sequence[str], missing: Sequence[str], on_missing: str) -> str:
    """Line on the number of components with engines in the store, and on the fate of the rest."""
    fates = {"build": "is built when needed", "later": "is built when the queue is empty"}
    then = f"\nthe rest {fates.get(on_missing, 'runs eager')}"
    return f"engines: {len(components) - len(missing)} of {len(components)}{then if missing else ''}"
