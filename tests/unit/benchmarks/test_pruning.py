"""Pruned networks: what is left of the weights, what a layer left out gives, and the clips that are judged."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from i2v_tensorrt.benchmarks import pruning
from i2v_tensorrt.common.spec import EngineSpec
from i2v_tensorrt.engine_builder.graph.onnx_export import example_inputs
from i2v_tensorrt.pipeline.models.registry import open_model

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers gives tensors to numpy

SIZES = {"batch": 2, "frames": 3, "latent_height": 8, "latent_width": 8}


@pytest.fixture(scope="module")
def network(tiny_folder: Path) -> torch.nn.Module:
    return open_model(tiny_folder).load("core", "fp32").eval()


@pytest.fixture(scope="module")
def call(tiny_folder: Path) -> pruning.Call:
    spec = open_model(tiny_folder).components["core"].spec
    return example_inputs(EngineSpec(spec, spec.limits, "fp32"), SIZES, 1)


def test_two_of_four_are_kept_and_they_are_the_greatest() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(8, 1, bias=False))
    weight = torch.tensor([[1.0, -4.0, 3.0, 2.0, 0.5, 0.25, -0.125, 1.0]])
    network.load_state_dict({"0.weight": weight})
    found = pruning.prune_linears(network).state_dict()["0.weight"]
    assert torch.equal(found, torch.tensor([[0.0, -4.0, 3.0, 0.0, 0.5, 0.0, 0.0, 1.0]]))
    assert torch.equal(network.state_dict()["0.weight"], weight), "the network itself is left alone"
    others = pruning.prune_linears(network, lambda name: name == "1")
    assert torch.equal(others.state_dict()["0.weight"], weight)


def test_a_layer_left_out_passes_its_input_on(network: torch.nn.Module, call: pruning.Call) -> None:
    layers = pruning.layers_of(network)
    assert {type(network.get_submodule(name)).__name__ for name in layers} == set(pruning.ADDING)
    seen: dict[str, bool] = {}

    def watch(name: str, module: torch.nn.Module) -> None:
        def passed_on(_: object, given: tuple[torch.Tensor, ...], keywords: object, output: Any) -> None:
            result = output[0] if isinstance(output, tuple) else getattr(output, "sample", output)
            seen[name] = torch.equal(result, given[0])

        module.register_forward_hook(passed_on, with_kwargs=True)

    for pruned, expected in ((network, False), (pruning.without_layers(network, layers), True)):
        copied = pruning.without_layers(pruned, ())
        for name in layers:
            watch(name, copied.get_submodule(name))
        pruning._predict(copied, call)
        assert seen == dict.fromkeys(layers, expected)


def test_the_importance_of_a_layer_is_what_the_prediction_changes(network: torch.nn.Module, call: pruning.Call) -> None:
    first, second, *_ = pruning.layers_of(network)
    without = pruning.without_layers(network, (first,))
    found = pruning.importance(without, (first, second), [call, call])
    assert list(found) == [first, second] and found[first] == 0 < found[second]
    whole, pruned = pruning._predict(network, call), pruning._predict(without, call)
    expected = float((pruned - whole).norm() / whole.norm())
    assert pruning.importance(network, (first,), [call])[first] == pytest.approx(expected)


def test_the_work_of_layers_is_a_part_of_the_whole(network: torch.nn.Module, call: pruning.Call) -> None:
    layers = pruning.layers_of(network)
    found = pruning.work_shares(network, layers, call)
    assert list(found) == layers and all(0 < share < 1 for share in found.values()) and sum(found.values()) < 1
    assert pruning.work_shares(network, ("no layer",), call) == {"no layer": 0.0}


@pytest.mark.torture
def test_a_clip_of_the_bundled_model_is_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "LEFT_OUT", (1,))
    monkeypatch.setattr(pruning, "PROBED", (0,))
    layers = pruning.layers_of
    monkeypatch.setattr(pruning, "layers_of", lambda network: layers(network)[:2])
    assert pruning.main(["--clips", "1", "--steps", "2", "--out", str(tmp_path / "pruning.json")]) == 0
    found = json.loads((tmp_path / "pruning.json").read_text("utf-8"))
    assert len(found["importance"]) == len(found["work_shares"]) == 2 and found["weights_kept"]["exact"] == 1
    assert 0.5 < found["weights_kept"]["2:4 of all linears"] < found["weights_kept"]["2:4 of the feed-forwards"] < 1
    for name, row in found["summary"].items():
        assert row["clips"] == 1 and ("psnr_db" in row) == (name != "exact")
        assert name == "exact" or row["psnr_db"] < 100
