"""The parts of a network that fp16 cannot hold: found by running it, and computed in fp32 ever after.

A number above 65504 becomes infinite in fp16, then not a number, then a black picture. Which layers give such
numbers is a matter of the weights, so the network is run on random inputs in eager PyTorch, and the result of
every operation is looked at. A part that leaves the range, or comes near its end, is cast to fp32 in the network
itself, which every engine is made from.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.hooks import RemovableHandle

from ...common.errors import EngineError
from ...common.spec import EngineSpec
from .onnx_export import example_inputs

log = logging.getLogger(__name__)

WHOLE = "the whole network"
"""The name of an fp32 module that is the whole network."""
HALF_MAX = torch.finfo(torch.float16).max
MARGIN = HALF_MAX / 4
"""The largest number that is left to fp16: pictures and prompts may give larger ones than random inputs do."""
MASK = 1e30
"""Numbers of this size are no results: they stand for infinity, as the largest of fp16 does, in a mask."""
CUT = HALF_MAX - 32
"""The number before the largest, which takes the place of infinity."""
SEEDS = range(3)
PRODUCTS = frozenset(getattr(torch.ops.aten, name).default for name in ("convolution", "mm", "addmm", "bmm", "baddbmm"))


def apply_fp32_fallback(network: torch.nn.Module, spec: EngineSpec) -> tuple[str, ...]:
    """Makes the network safe in fp16, in place; returns the names of the modules that compute in fp32 from now on.

    Its `fp32_kinds`, if it has any, are classes whose modules are among these whatever the numbers, and are named as a
    kind. The network has fp16 weights and is on the CPU; its inputs and outputs stay fp16, and without an fp32 module
    it stays as it was. It is run at a small size, for the size of its numbers hardly depends on its dimensions.
    Raises EngineError when the network's outputs, and not only its inner results, exceed fp16.
    """
    declared = _declared(network)
    names = declared
    while True:
        hooks = [hook for name in names for hook in _cast(network.get_submodule(name))]
        watch = _watched(network, spec)
        larger = _outermost(names | watch.overflowing())
        if larger == names:
            break
        for hook in hooks:
            hook.remove()
        names = larger
    if watch.exceeds:
        raise EngineError(
            f"{spec.network.component} gives numbers beyond fp16, whose largest is {HALF_MAX:.0f}, even where it "
            "computes in fp32: choose bf16 or fp32."
        )
    if names:
        log.info("%s computes in fp32 in %s", spec.network.component, ", ".join(sorted(names)))
    kinds = {f"every {type(network.get_submodule(name)).__name__}" for name in names & declared}
    return (*sorted(kinds), *sorted(name or WHOLE for name in names - declared))


def with_fp32_fallback(load: Callable[[], torch.nn.Module], spec: EngineSpec) -> Callable[[], torch.nn.Module]:
    """Loads as `load` does, with fp32 fp32 modules where fp16 overflows."""

    def loaded() -> torch.nn.Module:
        network = load()
        apply_fp32_fallback(network, spec)
        return network

    return loaded


def _declared(network: torch.nn.Module) -> frozenset[str]:
    """The modules that the network itself wants in fp32."""
    kinds = getattr(network, "fp32_kinds", ())
    return frozenset(name for name, module in network.named_modules() if isinstance(module, kinds))


def _outermost(names: Iterable[str]) -> frozenset[str]:
    """The names without those of modules that are inside another named module."""
    known = frozenset(names)
    return frozenset(name for name in known if not any(_is_within(name, other) for other in known))


def _is_within(name: str, other: str) -> bool:
    return name != other and (not other or name.startswith(f"{other}."))


def _cast(module: torch.nn.Module) -> list[RemovableHandle]:
    """Makes a module that is given fp16 and gives it compute in fp32; returns the hooks that do it."""
    module.float()

    def enter(_: Any, args: Any, kwargs: Any) -> Any:
        return _converted((args, kwargs), torch.float16, torch.float32)

    def leave(_: Any, __: Any, output: Any) -> Any:
        return _converted(output, torch.float32, torch.float16)

    return [module.register_forward_pre_hook(enter, with_kwargs=True), module.register_forward_hook(leave)]


def _converted(values: Any, source: torch.dtype, to: torch.dtype) -> Any:
    return tree_map(lambda value: value.to(to) if _is(value, source) else value, values)


def _is(value: Any, dtype: torch.dtype) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == dtype


def _watched(network: torch.nn.Module, spec: EngineSpec) -> _Watch:
    """Findings in runs on several random inputs of a small size, in which every dimension is greater than one."""
    watch = _Watch()
    sizes = {name: limits.above(1) for name, limits in spec.network.limits.ranges.items()}
    with watch.modules(network), _attention_as_exported(), torch.inference_mode(False), torch.no_grad():
        for seed in SEEDS:
            inputs = example_inputs(spec, sizes, seed)
            with watch:
                network(**inputs)
    return watch


@contextmanager
def _attention_as_exported() -> Iterator[None]:
    """Attention as the products that it is exported as, all of them in fp16, so that none is out of sight."""
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)


class _Watch(TorchDispatchMode):
    """Looks at every operation's result for numbers that fp16 cannot hold, and notes in which module they arise."""

    def __init__(self) -> None:
        super().__init__()
        self.exceeds = False
        """Whether a number was beyond fp16, and not only near its end."""
        self._calls: list[str] = []
        self._origins: set[tuple[str, ...]] = set()
        self._givers: set[str] = set()

    def overflowing(self) -> set[str]:
        """Smallest modules around the large numbers whose outputs have none; the network where no module is such."""
        return {next((name for name in reversed(calls) if name not in self._givers), "") for calls in self._origins}

    @contextmanager
    def modules(self, network: torch.nn.Module) -> Iterator[None]:
        """Follows which module of the network is at work."""
        hooks: list[RemovableHandle] = []
        for name, module in network.named_modules():
            hooks += [module.register_forward_pre_hook(self._entering(name)), module.register_forward_hook(self._left)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _entering(self, name: str) -> Callable[[Any, Any], None]:
        return lambda module, args: self._calls.append(name)

    def _left(self, module: Any, args: Any, output: Any) -> None:
        name = self._calls.pop()
        if any(_is(value, torch.float16) and _greatest(value) > MARGIN for value in tree_leaves(output)):
            self._givers.add(name)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        found = _run(func, args, kwargs or {})
        results = [value for value in tree_leaves(found) if _is(value, torch.float16)]
        greatest = max(map(_greatest, results), default=0.0)
        if greatest > MARGIN and not func.is_view:
            given = [value for value in tree_leaves((args, kwargs)) if not any(value is result for result in results)]
            if any(isinstance(value, torch.Tensor) for value in given) and not any(map(_is_mask, given)):
                self._origins.add(tuple(self._calls))
                self.exceeds |= greatest > HALF_MAX
                for result in results if greatest == math.inf else ():
                    result.nan_to_num_(0.0, CUT, -CUT)  # so that later operations can be checked too
        return found


def _run(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
    """The operation; products of fp16 numbers are added up in fp32, as GPUs do, and as CPUs can."""
    if func not in PRODUCTS or not any(_is(value, torch.float16) for value in tree_leaves(args)):
        return func(*args, **kwargs)
    args, kwargs = _converted((args, kwargs), torch.float16, torch.float32)
    return _converted(func(*args, **kwargs), torch.float32, torch.float16)


def _greatest(tensor: torch.Tensor) -> float:
    """The greatest absolute value; infinity if any is not finite."""
    found = float(tensor.detach().abs().amax()) if tensor.numel() else 0.0
    return found if math.isfinite(found) else math.inf


def _is_mask(value: Any) -> bool:
    """Whether an operand is, or holds, a number that stands for infinity."""
    if isinstance(value, torch.Tensor):
        least = HALF_MAX if value.dtype == torch.float16 else MASK
        return value.is_floating_point() and _greatest(value) >= least
    return isinstance(value, float) and abs(value) >= HALF_MAX
