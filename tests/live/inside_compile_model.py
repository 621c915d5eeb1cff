"""I2V Compile Model over weights that ComfyUI brings in as they are used, as it does on a GPU."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import SkipTest
from unittest.mock import patch
from weakref import ref

import comfy.memory_management
import comfy.model_management as memory
import comfy.model_patcher
import comfy.ops
import comfy.samplers
import comfy.sd
import comfy.utils
import comfy_aimdo.host_buffer
import torch
from comfy.ldm.wan.model import WanModel
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from comfy_api.torch_helpers import set_torch_compile_wrapper
from safetensors.torch import load_file

from i2v_tensorrt.engine_builder.backends.base import OUTSIDE
from i2v_tensorrt.nodes.host import model as host_model
from i2v_tensorrt.nodes.host.folders import engine_store
from i2v_tensorrt.nodes.host.model import CompiledModel
from i2v_tensorrt.runtime.engines.policy import EnginePolicy
from i2v_tensorrt.tests.live.card import uncollected
from i2v_tensorrt.tests.live.core_models import WAN, WANS, filled, write
from i2v_tensorrt.tests.live.inside import need

CARD = torch.device("cpu", 0)


def checkpoint(folder: Path) -> str:
    """A tiny Wan in fp32."""
    layers: dict[str, Any] = {"device": "cpu", "operations": comfy.ops.disable_weight_init, "dtype": torch.float32}
    write(filled(WanModel(**WAN, **WANS["tiny_wan22_a14b"], **layers)), folder, "diffusion_models", "wan")
    return str(folder / "diffusion_models" / "wan.safetensors")


@contextmanager
def half_precision() -> Iterator[None]:
    """A device on which ComfyUI computes in fp16."""
    with patch.object(memory, "should_use_fp16", lambda *_, **__: True):
        yield


@contextmanager
def dynamic(room: "Room") -> Iterator[list[str]]:
    """ComfyUI's dynamic VRAM on a card that is this machine's memory; gives the files that are read.

    As far as it goes without its library: weights that are brought in as they are used never come.
    """
    reads: list[str] = []

    def read(path: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        reads.append(path)
        return load_file(path), {}

    changes: list[tuple[Any, str, Any]] = [
        (comfy.memory_management, "aimdo_enabled", True),
        (comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcherDynamic),
        (comfy.utils, "load_safetensors", read),
        (comfy_aimdo.host_buffer, "HostBuffer", lambda *_: None),
        (memory, "get_torch_device", lambda: CARD),
        (memory, "get_free_memory", room),
        (memory, "is_device_cpu", lambda device: device == torch.device("cpu")),
    ]
    with ExitStack() as stack:
        for target, name, value in changes:
            stack.enter_context(patch.object(target, name, value))
        yield reads


def weights(model: Any) -> list[torch.Tensor]:
    return list(model.model.diffusion_model.parameters())


CLIP = (1, 16, 3, 8, 8)


class Room:
    """How much memory ComfyUI finds on the pretended card, and on the host."""

    def __init__(self, size_bytes: int, host_bytes: int = 1 << 40) -> None:
        self._size_bytes, self._host_bytes = size_bytes, host_bytes

    def __call__(self, device: object = None, torch_free_too: bool = False) -> Any:
        size_bytes = self._host_bytes if device == torch.device("cpu") else self._size_bytes
        return (size_bytes, 0) if torch_free_too else size_bytes


def sampled(model: ModelPatcher, steps: int = 2, guidance_scale: float = 1.0) -> torch.Tensor:
    """Some steps of a tiny clip by ComfyUI's own guider."""
    generator = torch.Generator().manual_seed(1)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(*([[torch.randn(1, 12, 4096, generator=generator), {}]] for _ in range(2)))
    guider.set_cfg(guidance_scale)
    noise = torch.randn(CLIP, generator=generator)
    sampler = comfy.samplers.sampler_object("euler")
    with torch.inference_mode():
        return guider.sample(noise, torch.zeros(CLIP), sampler, torch.linspace(1, 0, steps + 1), disable_pbar=True)


def compiled(model: ModelPatcher) -> tuple[CompiledModel, ModelPatcher]:
    """The model behind the node, which builds nothing here."""
    node = CompiledModel(None, EnginePolicy(backend="eager", on_missing="eager"))
    return node, node.attached_to(model)


def case_a_model_of_dynamic_weights_gives_what_the_same_gives_whole(folder: Path) -> None:
    """From a file in fp32, by a card that computes in fp16; the file is read once for all samplings."""
    path = checkpoint(folder)
    with half_precision():
        expected = sampled(comfy.sd.load_diffusion_model(path))
        with dynamic(Room(1 << 40)) as reads:
            model = comfy.sd.load_diffusion_model(path)
            assert model.is_dynamic() and len(reads) == 1
            for _ in range(2):
                node, clone = compiled(model)
                assert clone.is_dynamic() and node.forecast(model).startswith("WAN21, WanModel: ")
                assert torch.equal(sampled(clone), expected)
                assert node._stays_dynamic is None
            assert len(reads) == 2
    whole = host_model._WHOLE[model.model]
    assert {weight.dtype for weight in weights(whole)} == {torch.float16, torch.float32}
    assert whole.model_size() < sum(weight.nbytes for weight in weights(model)), "its size is what it holds"
    (entry,) = memory.current_loaded_models
    assert entry.model is whole and entry.model_loaded_memory() == whole.model_size()
    assert entry.model_unload() and entry.model_loaded_memory() == 0
    memory.current_loaded_models.remove(entry)


def case_what_is_patched_is_patched_whole_and_read_no_more(folder: Path) -> None:
    path, name = checkpoint(folder), "diffusion_model.blocks.0.self_attn.q.weight"

    def patched(model: ModelPatcher, strength: float) -> ModelPatcher:
        clone = model.clone()
        weight = model.model.diffusion_model.blocks[0].self_attn.q.weight
        clone.add_patches({name: (torch.ones(weight.shape),)}, strength)
        return clone

    with half_precision():
        plain = comfy.sd.load_diffusion_model(path)
        expected = [sampled(patched(plain, strength)) for strength in (0.5, 0.0, 1.0)]
        with dynamic(Room(1 << 40)) as reads:
            model = compiled(comfy.sd.load_diffusion_model(path))[1]
            found = [sampled(patched(model, strength)) for strength in (0.5, 0.0, 1.0)]
    assert len(reads) == 2
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert not torch.equal(found[0], found[1])


def case_what_does_not_fit_whole_stays_dynamic(folder: Path) -> None:
    path = checkpoint(folder)
    with half_precision(), dynamic(Room(0)) as reads:
        model = comfy.sd.load_diffusion_model(path)
        reserved = int(memory.minimum_inference_memory())
        held = sum(weight.nbytes for weight in weights(host_model._loaded_whole(model)))
        reads.clear()
        for room_bytes, stays in ((reserved + held, False), (reserved + held - 1, True)):
            with patch.object(memory, "get_free_memory", Room(room_bytes)):
                node, clone = compiled(model)
                assert (" runs block by block: Expected room for " in node.forecast(model)) == stays
                assert seen(clone) is (clone if stays else None)
        assert node._stays_dynamic is not None and "ComfyUI brings the weights in" in node._stays_dynamic
        # A clip for which a step takes more than ComfyUI's least.
        with patch.object(memory, "get_free_memory", Room(reserved + held)):
            assert seen(clone, (1, 16, 21, 512, 512)) is clone
    assert not reads


def seen(model: ModelPatcher, shape: tuple[int, ...] = CLIP) -> ModelPatcher | None:
    """The model that a guider samples with; None for one that is loaded whole."""
    found: list[ModelPatcher] = []
    guider = comfy.samplers.CFGGuider(model)
    guider.conds = {}
    (wrapper,) = model.get_all_wrappers(WrappersMP.OUTER_SAMPLE)
    original = WrapperExecutor.new_class_executor(lambda *_: found.append(guider.model_patcher), guider, [wrapper])
    original.execute(torch.empty(shape, device="meta"))
    assert guider.model_patcher is model
    return found[0] if found[0].is_dynamic() else None


def case_what_the_host_cannot_hold_is_not_read(folder: Path) -> None:
    path = checkpoint(folder)
    with half_precision(), dynamic(Room(1 << 40)) as reads:
        model = comfy.sd.load_diffusion_model(path)
        for host_bytes, stays in ((model.model_size() - 1, True), (model.model_size(), False)):
            with patch.object(memory, "get_free_memory", Room(1 << 40, host_bytes)):
                node, clone = compiled(model)
                assert (" GiB of weights on the host, found " in node.forecast(model)) == stays
                assert seen(clone) is (clone if stays else None)
                assert len(reads) == 2 - stays


def case_an_engine_that_holds_weights_needs_room_for_both(folder: Path) -> None:
    need("onnxruntime")
    path, policy = checkpoint(folder), EnginePolicy(backend="onnxruntime", on_missing="eager")
    with half_precision(), dynamic(Room(0)):
        model = comfy.sd.load_diffusion_model(path)
        held = int(memory.minimum_inference_memory()) + sum(x.nbytes for x in weights(host_model._loaded_whole(model)))
        with patch.object(memory, "get_free_memory", Room(held)):
            assert " runs block by block: Expected room for " in CompiledModel(None, policy).forecast(model)


def case_the_layers_are_looked_for_once_a_run_and_looked_at_in_every_call(folder: Path) -> None:
    node, model = compiled(comfy.sd.load_diffusion_model(checkpoint(folder)))
    network, walks, calls = model.model.diffusion_model, [], []

    def walked(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        walks.append(self)
        return named_modules(self, *args, **kwargs)

    def hooked(executor: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(network.blocks[0].register_forward_hook(lambda *_: None) if len(calls) == 1 else None)
        return executor(*args, **kwargs)

    named_modules = torch.nn.Module.named_modules
    sampled(model)
    with patch.object(torch.nn.Module, "named_modules", walked):
        counts = []
        for steps in (2, 5):
            walks.clear()
            sampled(model, steps)
            counts.append(len([each for each in walks if each is network]))
    assert counts[0] == counts[1]
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "test", hooked)
    sampled(model, 3)
    assert list(node._blocks._reasons) == ["Expected the network's own layers, found a hook on blocks.0."]


def case_the_whole_weights_go_with_the_model(folder: Path) -> None:
    path = checkpoint(folder)
    with half_precision(), dynamic(Room(1 << 40)), uncollected():
        model = comfy.sd.load_diffusion_model(path)
        clone = compiled(model)[1]
        assert seen(clone) is None
        whole = ref(host_model._WHOLE[model.model].model)
        del clone
        assert whole() is not None, "the next node would read them again"
        del model
        assert whole() is None and memory.current_loaded_models == []


def case_a_compiler_of_the_cores_runs_alone_in_either_order(folder: Path) -> None:
    """Ours was read by `torch.compile` as part of the network, which ended the run."""
    model = comfy.sd.load_diffusion_model(checkpoint(folder))
    expected, told = sampled(model), []
    for is_first in (True, False):
        source = model.clone()
        node = CompiledModel(None, EnginePolicy(backend="eager", on_missing="eager"))
        if is_first:
            set_torch_compile_wrapper(source, backend="eager")
            assert "runs as it is: torch.compile is on this model too" in node.forecast(source)
        both = node.attached_to(source)
        if not is_first:
            set_torch_compile_wrapper(both, backend="eager")
        with patch.object(host_model, "say", lambda _, text: told.append(text)):
            found = sampled(both)
        assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    assert len(told) == 2
    assert all("by the network as it is\nThe network runs as it is: torch.compile is on" in text for text in told)


def case_an_engine_with_weights_outside_computes_with_comfyuis_own(folder: Path) -> None:
    """By ONNX Runtime, as TensorRT does: one engine, no file of weights, and a LoRA counts without a build."""
    need("onnxruntime")
    model, name = comfy.sd.load_diffusion_model(checkpoint(folder)), "diffusion_model.blocks.0.self_attn.q.weight"
    node = CompiledModel(None, EnginePolicy("onnxruntime", "fp32", "exact", "build", weights=OUTSIDE))
    patched = model.clone()
    patched.add_patches({name: (torch.ones(model.model.diffusion_model.blocks[0].self_attn.q.weight.shape),)}, 0.1)
    plain, changed = sampled(model), sampled(patched)
    assert (changed - plain).abs().max() > 1e-3
    for source, expected in ((model, plain), (patched, changed), (model, plain)):
        found = sampled(node.attached_to(source), 2)
        assert node._network is not None
        core, network = node._network
        assert core._dump is None
        (plan,) = engine_store().plans()
        assert not plan.manifest.spec.holds_weights
        assert network.take_notes() == []
        assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    assert set(network.backends()) == {"onnxruntime"}


def case_a_copy_on_another_device_runs_as_it_is_beside_the_cores_split(folder: Path) -> None:
    """MultiGPU CFG Split over two devices that are this CPU, each with a thread: engines serve the first alone."""
    need("onnxruntime")
    model = comfy.sd.load_diffusion_model(checkpoint(folder))
    if not hasattr(model, "deepclone_multigpu"):
        raise SkipTest("this ComfyUI shares no model among GPUs")
    expected, told = sampled(model, guidance_scale=3.0), []
    node = CompiledModel(None, EnginePolicy("onnxruntime", "fp32", "exact", "build", weights=OUTSIDE))
    split = node.attached_to(model)
    copy = split.deepclone_multigpu(new_load_device=CARD)
    copy.is_multigpu_base_clone = True
    split.set_additional_models("multigpu", [copy])
    split.match_multigpu_clones()
    with patch.object(host_model, "say", lambda _, text: told.append(text)):
        for _ in range(2):
            found = sampled(split, guidance_scale=3.0)
            assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    assert len(told) == 2, "each run is told once, and not for every copy"
    assert "2 of 4 calls by the network as it is" in told[-1] and "2 of 4 calls by the onnxruntime engine" in told[-1]
    assert "Engines serve the first GPU alone" in told[-1]
