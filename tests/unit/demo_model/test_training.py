"""Both stages at tiny size on a CPU: they learn something, resume exactly and write a loadable folder."""

from pathlib import Path

import pytest
import torch

from i2v_tensorrt.demo_model.training import __main__ as command
from i2v_tensorrt.demo_model.training import networks as nets
from i2v_tensorrt.demo_model.training.clips import View
from i2v_tensorrt.demo_model.training.loop import Plan
from i2v_tensorrt.demo_model.training.train_motion import train_motion
from i2v_tensorrt.demo_model.training.train_vae import PER_CLIP, by_bands, means_of, shimmer, train_vae, views_of

ROOT = Path(__file__).resolve().parents[3]
CPU = torch.device("cpu")
pytestmark = pytest.mark.slow


def motion(folder: Path, steps: int, stop: int | None = None) -> tuple[nets.Networks, list[list[float]]]:
    networks = nets.build(nets.Sizes.tiny(), 1)
    tokenizer = nets.load_tokenizer(ROOT / "demo_model")
    plan = Plan(folder, steps, 2, 1e-3, warmup=1)
    if stop is not None:
        plan = Plan(folder, steps, 2, 1e-3, warmup=1, seconds=-1.0)
    run = train_motion(networks, plan, CPU, tokenizer, View(32, 2))
    return networks, run.curve


def test_motion_training_resumes_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("i2v_tensorrt.demo_model.training.loop.LOG_EVERY", 2)
    whole, curve = motion(tmp_path / "whole", 4)
    motion(tmp_path / "halves", 4, stop=2)
    halves, again = motion(tmp_path / "halves", 4)
    assert curve == again and len(curve) == 2
    for one, other in zip(whole.unet.parameters(), halves.unet.parameters(), strict=True):
        assert torch.equal(one, other)
    assert any(not torch.equal(a, b) for a, b in zip(
        whole.unet.parameters(), nets.build(nets.Sizes.tiny(), 1).unet.parameters(), strict=True
    ))  # fmt: skip


def test_the_autoencoder_learns_and_its_folder_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("i2v_tensorrt.demo_model.training.loop.LOG_EVERY", 4)
    networks = nets.build(nets.Sizes.tiny(), 1)
    run = train_vae(networks, Plan(tmp_path / "state", 12, PER_CLIP, 3e-3, warmup=1), CPU, View(32))
    assert run.curve[-1][1] < run.curve[0][1]
    nets.save_folder(tmp_path / "folder", networks, nets.Sizes.tiny())
    loaded = nets.load_folder(tmp_path / "folder", CPU, torch.float32)
    for one, other in zip(networks.vae.parameters(), loaded.vae.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-3)


def test_an_autoencoder_that_keeps_its_latents_stays_near_them(tmp_path: Path) -> None:
    drift = {}
    frames = views_of(torch.arange(1), View(32)).frames
    for keep in (False, True):
        networks = nets.build(nets.Sizes.tiny(), 1)
        with torch.no_grad():
            before = means_of(networks.vae, frames)
            plan = Plan(tmp_path / str(keep), 15, PER_CLIP, 3e-3, warmup=1)
            with torch.enable_grad():
                train_vae(networks, plan, CPU, View(32), keep_latents=keep)
            drift[keep] = float((means_of(networks.vae, frames) - before).square().mean())
    assert 0 < drift[True] < 0.5 * drift[False]


def test_shimmer_is_what_comes_and_goes() -> None:
    views = views_of(torch.arange(1), View(128))
    noise = 0.1 * torch.randn(views.frames.shape, generator=torch.Generator().manual_seed(0))
    quiet = shimmer(views.frames, views.poses)
    assert shimmer(views.frames + 0.1, views.poses) == pytest.approx(float(quiet), abs=1e-5)
    assert shimmer(views.frames + noise, views.poses) > 3 * quiet


def test_fine_errors_cost_more_than_coarse_ones_of_the_same_size() -> None:
    fine = 0.1 * torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    coarse = torch.nn.functional.interpolate(fine[..., ::16, ::16], scale_factor=16, mode="bilinear")
    coarse = coarse * fine.abs().mean() / coarse.abs().mean()
    assert by_bands(fine) > 3 * by_bands(coarse) > 0
    assert by_bands(torch.zeros_like(fine)) == 0


def test_a_run_may_begin_with_some_networks_of_another(tmp_path: Path) -> None:
    nets.save_folder(tmp_path / "old", nets.build(nets.Sizes.tiny(), 5), nets.Sizes.tiny())
    words = ["motion", "--tiny", "--states", str(tmp_path / "states"), "--begin", str(tmp_path / "old")]
    options = command.parser().parse_args([*words, "--begin-parts", "unet", "text_encoder"])
    networks, sizes = command.fresh(options)
    old, new = nets.build(nets.Sizes.tiny(), 5), nets.build(sizes, command.SEED)
    for name, part in networks.parts().items():
        expected = (old if name in ("unet", "text_encoder") else new).parts()[name]
        for one, other in zip(part.parameters(), expected.parameters(), strict=True):
            assert torch.allclose(one, other, atol=1e-3)
    assert networks.vae.config["sample_size"] == 8 * networks.unet.config["sample_size"] == sizes.pixels
