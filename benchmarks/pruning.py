"""`run.py bench pruning`: what the bundled model's clips lose by 2:4 sparsity and by layers left out, on a CPU.

Quality alone: nothing is faster here. A weight is pruned by its magnitude and a layer by its measured importance, with
no training after; clips are compared with those of the whole network on the same schedule.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..common.atomic_file import write_text
from ..common.errors import I2VError
from ..common.pack_paths import BUNDLED
from ..engine_builder.backends.eager import EagerBackend
from ..engine_builder.store.store import EngineStore
from ..pipeline.acceleration.presets import EXACT_NAME
from ..pipeline.conditioning import Conditioning
from ..pipeline.denoising.guidance import BOTH, branch_inputs
from ..pipeline.denoising.sampler import Denoise
from ..pipeline.denoising.schedulers import SamplerSettings
from ..pipeline.models.base import VideoModel
from ..pipeline.models.registry import open_model
from ..pipeline.tensor_cache import ConditioningCache
from ..runtime.clip import decode_clip, encode_clip, sample_clip
from ..runtime.clip_plan import Denoising, plan_clip, plan_sampling
from ..runtime.engines.engine_set import EngineSet
from ..runtime.engines.policy import EnginePolicy
from .clip_stages import ignore
from .evaluation.clips import BUNDLED_GUIDANCE, BUNDLED_SIZE, MOTIONS, JudgedClip, bundled_clips
from .evaluation.measure import figures_of, summary
from .ladder.machine import describe_commit, describe_machine, describe_versions, now
from .measured_child import tell

RESULTS = Path(__file__).resolve().parent / "results" / "fewer" / "pruning.json"
STEPS, SCHEDULER = 8, "unipc"
"""As the preset `real time` has them, with guidance at every step."""
PROBED = (1, 5)
"""Steps of a clip whose calls tell a layer's importance."""
LEFT_OUT = (1, 2, 4, 8)
GROUP, KEPT = 4, 2
ADDING = ("Transformer2DModel", "TransformerTemporalModel", "TemporalConvLayer")
Network = torch.nn.Module
Call = dict[str, torch.Tensor]


def prune_linears(network: Network, wanted: Callable[[str], bool] = lambda name: True) -> Network:
    """A copy whose linears of `wanted` names keep the two greatest of every four weights along their input.

    The pattern of the sparse products of NVIDIA's cards from SM80 (Mishra et al. 2021, arXiv:2104.08378).
    """
    pruned = copy.deepcopy(network)
    for name, module in pruned.named_modules():
        if isinstance(module, torch.nn.Linear) and module.in_features % GROUP == 0 and wanted(name):
            groups = module.weight.data.reshape(-1, GROUP)
            least = groups.abs().argsort(dim=1)[:, : GROUP - KEPT]
            groups.scatter_(1, least, 0.0)
    return pruned


def layers_of(network: Network) -> list[str]:
    """The layers that only add to their input: attentions over pictures and over time, and temporal convolutions."""
    return [name for name, module in network.named_modules() if type(module).__name__ in ADDING]


def without_layers(network: Network, names: Iterable[str]) -> Network:
    """A copy in which these layers pass their input on: with weights of zero, what they add to it is zero."""
    pruned = copy.deepcopy(network)
    for name in names:
        for parameter in pruned.get_submodule(name).parameters():
            parameter.data.zero_()
    return pruned


def importance(network: Network, layers: Sequence[str], calls: Sequence[Call]) -> dict[str, float]:
    """The relative change of the prediction without each layer, as a mean over the calls; the least first."""
    wholes = [_predict(network, call) for call in calls]
    found = {}
    for name in layers:
        pruned = without_layers(network, (name,))
        changes = [
            (_predict(pruned, call) - whole).norm() / whole.norm() for call, whole in zip(calls, wholes, strict=True)
        ]
        found[name] = float(sum(changes)) / len(changes)
    return dict(sorted(found.items(), key=lambda item: item[1]))


def work_shares(network: Network, layers: Sequence[str], call: Call) -> dict[str, float]:
    """The part that each layer has in the operations of a call's products, convolutions and attentions."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter:
        _predict(network, call)
    found = counter.get_flop_counts()
    top, whole = type(network).__name__, counter.get_total_flops()
    return {name: sum(found.get(f"{top}.{name}", {}).values()) / whole for name in layers}


def _predict(network: Network, call: Call) -> torch.Tensor:
    with torch.inference_mode():
        found = network(**call)
    return (found[0] if isinstance(found, tuple) else found).float()


@dataclass(frozen=True)
class Judge:
    """Clips of the bundled model by any network in its denoiser's place."""

    engines: EngineSet
    cache: ConditioningCache
    steps: int

    def frames(self, network: Network, clip: JudgedClip, probe: list[Call] | None = None) -> torch.Tensor:
        """The clip's frames; the inputs of the probed steps' calls are added to `probe`."""
        plan = plan_clip(self.engines, clip.request.size)
        conditioning = encode_clip(plan, clip.request, self.cache, ignore)
        settings = Denoising(clip.seed, BUNDLED_GUIDANCE, SamplerSettings(self.steps, SCHEDULER))
        denoise = _denoiser(self.engines.model, network, conditioning, probe)
        latents = sample_clip(plan_sampling(plan, settings), conditioning, ignore, wrap=lambda _: denoise)
        return decode_clip(plan, latents, BUNDLED_SIZE.num_frames, ignore)


def _denoiser(model: VideoModel, network: Network, conditioning: Conditioning, probe: list[Call] | None) -> Denoise:
    """The guided prediction of the network, as the clip's own denoiser makes it of an engine's."""
    inputs, number = model.components[model.denoiser].spec.inputs, itertools.count()

    def denoise(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        call = branch_inputs(inputs, model.prepare_input(x, t, conditioning.tensors), BOTH)
        if next(number) in PROBED and probe is not None:
            probe.append(call)
        return model.combine({"prediction": _predict(network, call)}, BUNDLED_GUIDANCE)

    return denoise


def parser() -> argparse.ArgumentParser:
    """The benchmark's options."""
    top = argparse.ArgumentParser("run.py bench pruning", description=__doc__)
    add = top.add_argument
    add("--clips", type=int, default=len(MOTIONS), metavar="N", help="at most 60, the motions in turn (%(default)s)")
    add("--steps", type=int, default=STEPS, metavar="N", help=f"by {SCHEDULER} (%(default)s)")
    add("--out", type=Path, default=RESULTS, metavar="FILE", help="(%(default)s)")
    return top


def main(argv: Sequence[str]) -> int:
    """Measures importance, then judges clip by clip and writes after each; 1 after a sentence on an error."""
    options, started = parser().parse_args(argv), time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="i2v-pruning-") as folder:
            _run(options, Path(folder), lambda text: tell(f"[{time.monotonic() - started:7.1f} s] {text}"))
    except (I2VError, OSError) as error:
        sys.stderr.write(f"run.py bench pruning: {error}\n")
        return 1
    return 0


def _run(options: argparse.Namespace, folder: Path, say: Callable[[str], None]) -> None:
    model = open_model(BUNDLED)
    policy = EnginePolicy(EagerBackend.name, "fp32")
    engines = EngineSet(model, EngineStore(folder / "engines"), policy, torch.device("cpu"))
    judge = Judge(engines, ConditioningCache(folder / "conditioning"), options.steps)
    whole = model.load(model.denoiser, "fp32").eval()
    clips = bundled_clips(1 - (-options.clips // len(MOTIONS)))
    probe: list[Call] = []
    say("layers' importance on a clip that is not judged ...")
    judge.frames(whole, clips[-1], probe)
    weighed, shares = importance(whole, layers_of(whole), probe), work_shares(whole, layers_of(whole), probe[0])
    variants = _variants(whole, weighed)
    rows: dict[str, dict[str, Any]] = {name: {} for name in variants}
    for clip in clips[: options.clips]:
        reference = None
        for name, network in variants.items():
            frames = judge.frames(network, clip)
            reference = frames if reference is None else reference
            rows[name][clip.name] = figures_of(frames, clip, None if name == EXACT_NAME else reference)
            say(f"{clip.name}: {name}: {rows[name][clip.name].get('psnr_db', float('nan')):.2f} dB")
        _write(options, weighed, shares, variants, rows)
    for name, found in _summaries(rows).items():
        say(f"{name}: {json.dumps(found)}")


def _variants(whole: Network, weighed: Mapping[str, float]) -> dict[str, Network]:
    """The whole network first, and the pruned ones."""
    order = list(weighed)
    left = [count for count in LEFT_OUT if count < len(order)]
    return {
        EXACT_NAME: whole,
        "2:4 of the feed-forwards": prune_linears(whole, lambda name: ".ff." in name),
        "2:4 of all linears": prune_linears(whole),
        **{f"without the {count} least layers": without_layers(whole, order[:count]) for count in left},
    }


def _summaries(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    found = {name: summary(some, rows[EXACT_NAME]) for name, some in rows.items()}
    return {name: {key: round(value, 4) for key, value in each.items()} for name, each in found.items()}


def _write(
    options: argparse.Namespace,
    weighed: Mapping[str, float],
    shares: Mapping[str, float],
    variants: Mapping[str, Network],
    rows: Mapping[str, Mapping[str, Any]],
) -> None:
    weights = {name: sum(int(x.count_nonzero()) for x in each.parameters()) for name, each in variants.items()}
    document = {
        "title": f"The bundled model pruned, {options.steps} guided steps by {SCHEDULER}, against the whole one",
        "date": now(),
        "commit": describe_commit(None),
        "machine": describe_machine(torch.device("cpu")),
        "versions": describe_versions(),
        "importance": weighed,
        "work_shares": {name: shares[name] for name in weighed},
        "weights_kept": {name: round(count / weights[EXACT_NAME], 4) for name, count in weights.items()},
        "summary": _summaries(rows),
        "rows": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(options.out, json.dumps(document, indent=1) + "\n")
