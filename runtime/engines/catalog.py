"""Engines that a policy asks for, and the stored ones among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from ...common.device import cuda_arch, has_bf16
from ...common.errors import BackendUnavailableError, InputError, MissingEngineError
from ...common.network_source import NetworkSource
from ...common.shapes import ShapeProfile
from ...common.spec import QUANTIZED, EngineSpec, network_precision, rounds
from ...engine_builder.backends.base import INSIDE, Backend
from ...engine_builder.backends.eager import EagerBackend
from ...engine_builder.backends.registry import AUTO, BACKENDS, choose_backend
from ...engine_builder.backends.tensorrt.backend import TensorRTBackend
from ...engine_builder.build.compile import BuildRequest
from ...engine_builder.graph.quantize import check_arch
from ...engine_builder.graph.recorded_calls import Calibration
from ...engine_builder.store.store import EngineStore, Plan
from ...pipeline.models.model_networks import BUILT_BLOCKS
from . import messages
from .networks import Networks
from .policy import EnginePolicy


class EngineCatalog:
    """The engines of some networks under one policy, as descriptions: built or not, and never loaded."""

    def __init__(self, model: Networks, store: EngineStore, policy: EnginePolicy, device: torch.device) -> None:
        self.model = model
        self.store = store
        self.policy = policy
        self.device = device
        self.precision = policy.precision_on(device)
        _check_rewrites(model, policy)

    def request(
        self,
        component: str,
        sizes: Mapping[str, int],
        *,
        arch: str | None = None,
        calibration: Calibration | None = None,
    ) -> BuildRequest:
        """Request to build the component's engine at these sizes by the shape policy, or to look for it in the store.

        Arguments and errors are those of `build`, without the errors of a build itself.
        """
        backend = self.backend() if arch is None else BACKENDS[TensorRTBackend.name]
        rewrites, precision = self.rewrites(component, backend), network_precision(self.precision_of(component))
        blocks = BUILT_BLOCKS if backend.builds_blocks and component in self.model.block_lists else 0
        if rounds(rewrites) and (here := cuda_arch(self.device)) is not None:
            check_arch("fp8", here)
        source = self.model.source(component, precision, rewrites, blocks)
        place = self._places(component, backend, source)[0]
        spec = self._spec(component, self.profile(component, sizes), backend, place)
        recorded = calibration if rounds(rewrites) else None
        if spec.precision not in QUANTIZED:
            calibration = None
        elif calibration is None:
            raise MissingEngineError(messages.uncalibrated(component, spec.precision))
        else:
            spec = replace(spec, calibration=calibration.name)
        return BuildRequest(
            spec=spec,
            source=source,
            backend=backend,
            device=self.device,
            arch=arch,
            reference=self.model.source(component, precision, (), blocks) if rewrites else None,
            details=self.compared_with(spec, component),
            calibration=calibration,
            recorded=recorded,
            device_bytes=source.size_bytes // (2 if calibration else 1) + self._scratch_bytes(component, spec),
            of_blocks=bool(blocks),
        )

    def compared_with(self, spec: EngineSpec, component: str) -> dict[str, str]:
        """The manifest's word on the weights that an engine without any was compared with."""
        return {} if spec.holds_weights else {"gated_with": self.model.components[component].spec.weights_sha256}

    def _scratch_bytes(self, component: str, spec: EngineSpec) -> int:
        """Device memory in bytes that the largest call of the parity check takes beside the weights."""
        precision = "fp16" if spec.calibration else spec.precision
        return max(self.model.scratch_bytes(component, sizes, precision) for sizes in spec.profile.corners)

    def stored(self, component: str) -> list[Plan]:
        """The stored engines that serve this component here, the narrowest profile first, then the newest.

        Quantized engines match whatever calibration data they were built with; without a wish of the user's, engines
        with these weights inside and with weights outside match.
        """
        backend = self.backend()
        target = backend.target(self.device)
        places = self._places(component, backend, self.model.source(component, self.precision))
        wanted = [self._spec(component, ShapeProfile(), backend, place) for place in places]
        plans = [
            plan
            for plan in self.store.plans()
            if plan.manifest.target == target
            and replace(plan.manifest.spec, profile=ShapeProfile(), calibration="") in wanted
        ]
        plans.sort(key=lambda plan: plan.manifest.created_at, reverse=True)
        return sorted(plans, key=lambda plan: plan.manifest.spec.profile.width)

    def backend(self) -> Backend:
        """The backend that the policy names; raises BackendUnavailableError when it does not serve the device."""
        backend = choose_backend(self.policy.backend, self.device)
        if self.policy.backend == EagerBackend.name:
            raise BackendUnavailableError("Eager PyTorch has no engines: choose another backend to build some.")
        if not backend.builds:
            found = [each.availability(self.device) for each in BACKENDS.values() if each.builds]
            reasons = " ".join(each.sentence for each in found if not each.ok)
            raise BackendUnavailableError(f"No engine backend serves {self.device.type} here. {reasons}")
        return backend

    def can_build(self) -> bool:
        """Whether a backend that builds serves the device."""
        try:
            return self.backend().builds
        except BackendUnavailableError:
            return False

    def fitting(self, component: str, sizes: Mapping[str, int]) -> Plan | None:
        """The narrowest engine in the store that serves these sizes, of which some may not be the component's."""
        return next((plan for plan in self.stored(component) if plan.manifest.spec.profile.fits(sizes)), None)

    def profile(self, component: str, sizes: Mapping[str, int]) -> ShapeProfile:
        """The shapes of the component's engine by the policy; raises InputError for sizes that it does not take."""
        limits = self.model.components[component].spec.limits
        own = {name: size for name, size in sizes.items() if name in limits.ranges}
        return self.policy.profile(limits, own, self.model.latent)

    def _places(self, component: str, backend: Backend, source: NetworkSource) -> list[str]:
        """Places of a component's weights that the policy allows: that of a new engine first.

        Raises InputError for a place that the backend does not know, or that would take weights that are not there.
        """
        wanted = self.policy.weight_place
        precision = self.precision_of(component)
        if precision in QUANTIZED:
            if wanted not in (None, INSIDE):
                raise InputError(f"Engines in {precision} hold weights that their build has rounded, found {wanted}.")
            wanted = INSIDE
        first = backend.place_weights(wanted, source.size_bytes, self.device)
        if first == INSIDE and not source.has_weights:
            raise InputError(
                f"An engine of {backend.name} for {component} holds its weights, found a configuration alone: "
                "download the weights, or set their place to outside."
            )
        return [first] if wanted else [first, *(place for place in backend.weights if place != first)]

    def _spec(self, component: str, profile: ShapeProfile, backend: Backend, place: str) -> EngineSpec:
        network = backend.network_of(self.model.components[component].spec, place)
        if place != INSIDE:
            network = replace(network, component=self.model.components[namesake(self.model, component)].spec.component)
        return EngineSpec(network, profile, self.precision_of(component), self.rewrites(component, backend))

    def precision_of(self, component: str) -> str:
        """The precision of a component's engines.

        int8 or fp8 for the denoisers alone, which take most time: in encoders and decoders the loss would be visible.
        Where rewrites round the products it is that of everything else.
        """
        quantized = self.policy.quantized
        if quantized is not None and component in self.model.denoisers and not self.roundings(component):
            return quantized
        return self.run_precision(component)

    def run_precision(self, component: str) -> str:
        """The precision that a component runs in without an engine.

        Where fp16 is too small for it, the model's choice takes its place, and fp32 that of bf16 on GPUs without it. It
        is bf16 too where that is faster and the user has no wish, and beside products that rewrites round.
        """
        may_choose = self.policy.precision == AUTO and self.precision == "fp16" and self.model.bf16_rewrites
        names = self.model.rewrites(component, _backend_name(self.policy, self.device)) if may_choose else ()
        if not self.model.bf16_rewrites.isdisjoint(names) or self.roundings(component):
            return "bf16"
        if self.precision != "fp16":
            return self.precision
        wanted = self.model.instead_of_fp16.get(component, self.precision)
        return "fp32" if wanted == "bf16" and not has_bf16(self.device) else wanted

    def rewrites(self, component: str, backend: Backend) -> tuple[str, ...]:
        """The rewrites of a component's engines: those that the policy names, else those that pay on the backend; and
        those that round, where its precision asks for that."""
        rounding = self.roundings(component)
        if self.policy.rewrites is None:
            return (*self.model.rewrites(component, backend.name), *rounding)
        known = self.model.known_rewrites.get(component, ())
        return (*(name for name in known if name in self.policy.rewrites), *rounding)

    def roundings(self, component: str) -> tuple[str, ...]:
        """The rewrites that round a denoiser's products as it multiplies, by scales that no picture gives.

        None where the policy asks for no rounding, or its backend takes scales from pictures.
        """
        quantized = self.policy.quantized
        if quantized is None or component not in self.model.denoisers:
            return ()
        return self.model.roundings(component, quantized, _backend_name(self.policy, self.device))


def namesake(model: Networks, component: str) -> str:
    """The component by which engines without weights are named: the first denoiser that is the same network.

    So two experts, which differ in their weights alone, share an engine.
    """
    if component not in model.denoisers:
        return component
    mine = replace(model.components[component].spec, component="", weights_sha256="")
    specs = {name: model.components[name].spec for name in model.denoisers}
    return next(name for name, spec in specs.items() if replace(spec, component="", weights_sha256="") == mine)


def _check_rewrites(model: Networks, policy: EnginePolicy) -> None:
    known = {name: None for names in model.known_rewrites.values() for name in names}
    unknown = [name for name in policy.rewrites or () if name not in known]
    if unknown:
        raise InputError(f"The rewrites are {', '.join(known) or 'none'}, found {', '.join(unknown)}.")


def _backend_name(policy: EnginePolicy, device: torch.device) -> str:
    """The name of the policy's backend; eager PyTorch where that does not serve the device."""
    try:
        return choose_backend(policy.backend, device).name
    except BackendUnavailableError:
        return EagerBackend.name
