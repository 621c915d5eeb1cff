"""Single files of Stable Video Diffusion and Wan become folders: whole or not there, and by no more than a tensor."""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from i2v_tensorrt.common.errors import CheckpointError, StorageError
from i2v_tensorrt.pipeline.convert import folder as folder_module
from i2v_tensorrt.pipeline.convert.convert import convert, plan_of
from i2v_tensorrt.pipeline.models.registry import open_model

from ...helpers.toys import raising
from .test_single_files import SVD_FILE, TEXT_FILE, VISION_FILE, Twin, twins  # noqa: F401

WEIGHTS = "diffusion_pytorch_model.safetensors"
MADE = {"svd": "quant_conv.", "wan21": "encoder.embed_tokens."}
"""Beginning of tensors that the files do not hold, or hold once for two."""
Twins = Callable[[str], Twin]
KINDS = pytest.mark.parametrize("kind", ["svd", "wan21"])


@KINDS
def test_an_interrupted_one_goes_on_where_it_ended(
    twins: Twins,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    write, out = folder_module.write_tensors, tmp_path / "made"
    first = "unet" if kind == "svd" else "transformer"

    def interrupted(path: Path, tensors: dict[str, torch.Tensor]) -> None:
        if path.parent.name != first:
            raising(KeyboardInterrupt())()
        write(path, tensors)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(folder_module, "write_tensors", interrupted)
        convert(twins(kind).files, [], out, None)
    assert not out.exists()
    before = (tmp_path / "made.unfinished" / first / WEIGHTS).stat().st_ino
    made = convert(twins(kind).files, [], out, None)
    assert (made / first / WEIGHTS).stat().st_ino == before
    assert not (tmp_path / "made.unfinished").exists()
    found, expected = (open_model(each).part(first, "fp32").state_dict() for each in (made, twins(kind).folder))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@KINDS
def test_tensors_stay_in_their_files_until_they_are_written(twins: Twins, tmp_path: Path, kind: str) -> None:  # noqa: F811
    """What is written over the files' numbers is what their tensors are found to hold: none of them has been copied."""
    copies = [Path(shutil.copy(path, tmp_path)) for path in twins(kind).files]
    plan = plan_of(copies, [], None)
    held = {name: tensor for part in plan.parts.values() for name, tensor in part.tensors.items()}
    for copy in copies:
        with copy.open("r+b") as stream:
            start = 8 + int.from_bytes(stream.read(8), "little")
            stream.seek(start)
            stream.write(bytes(copy.stat().st_size - start))
    assert len(held) > 100
    assert {name for name, tensor in held.items() if tensor.any()} <= {"quant_conv.weight"}, "which the file lacks"


@KINDS
def test_every_precision_is_kept(twins: Twins, tmp_path: Path, kind: str) -> None:  # noqa: F811
    dtypes, files = [torch.float16, torch.bfloat16, torch.float32], []
    for path in twins(kind).files:
        tensors = load_file(path)
        mixed = {
            name: tensor.to(dtypes[number % 3]) if tensor.is_floating_point() else tensor
            for number, (name, tensor) in enumerate(tensors.items())
        }
        files.append(tmp_path / path.name)
        save_file(mixed, files[-1])
    made, plain = (
        convert(each, [], tmp_path / name, None) for each, name in ((files, "made"), (twins(kind).files, "p"))
    )
    kept: Counter[torch.dtype] = Counter()
    for path in made.rglob("*.safetensors"):
        whole = load_file(plain / path.relative_to(made))
        for name, tensor in load_file(path).items():
            assert torch.equal(tensor, whole[name].to(tensor.dtype)), name
            kept[tensor.dtype] += 0 if name.startswith(MADE[kind]) else tensor.numel()
    stored: Counter[torch.dtype] = Counter()
    for tensor in (tensor for path in files for tensor in load_file(path).values() if tensor.is_floating_point()):
        stored[tensor.dtype] += tensor.numel()
    assert kept == stored and set(kept) == set(dtypes)


def refusal(files: list[Path], out: Path, folders: list[Path] | None = None, kind: str | None = None) -> str:
    with pytest.raises((CheckpointError, StorageError)) as error:
        convert(files, folders or [], out, kind)
    assert list(out.parent.glob(f"{out.name}*")) == []
    return str(error.value)


def test_what_is_missing_is_named_with_its_usual_place(twins: Twins, tmp_path: Path) -> None:  # noqa: F811
    without = [path for path in twins("wan21").files if "vae" not in path.name and path.name != TEXT_FILE]
    told = refusal(without, tmp_path / "made")
    assert told.endswith(
        "its VAE and text encoder are missing: name wan_2.1_vae.safetensors too, usually in "
        "Comfy-Org/Wan_2.1_ComfyUI_repackaged; name umt5_xxl_fp16.safetensors too, usually in "
        "Comfy-Org/Wan_2.1_ComfyUI_repackaged."
    )
    tensors = {name: x for name, x in load_file(twins("svd").file).items() if "first_stage" not in name}
    save_file(tensors, tmp_path / "alone.safetensors")
    told = refusal([tmp_path / "alone.safetensors"], tmp_path / "made")
    assert told.endswith(
        "name a VAE of Stable Video Diffusion too, usually in stabilityai/stable-video-diffusion-img2vid-xt."
    )


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("kind", ["truncated", "pickled", "gone"])
def test_a_file_that_is_none_is_refused_wherever_it_stands(twins: Twins, tmp_path: Path, kind: str, place: int) -> None:  # noqa: F811
    files = [twins("wan21").file, *(path for path in twins("wan21").files if path != twins("wan21").file)]
    bad = tmp_path / ("bad.ckpt" if kind == "pickled" else "bad.safetensors")
    if kind != "gone":
        bad.write_bytes(files[place].read_bytes()[:-64])
    files[place] = bad
    words = {
        "truncated": f"{bad} is truncated or not a safetensors file",
        "pickled": f"{bad} is a pickle, which can run code: expected a .safetensors file",
        "gone": f"Expected the file {bad}",
    }
    assert refusal(files, tmp_path / "made").startswith(words[kind])


def test_ambiguous_files_are_asked_about(twins: Twins, tmp_path: Path) -> None:  # noqa: F811
    files = twins("wan21").files
    vision = shutil.copy(twins("wan21").models / "clip_vision" / VISION_FILE, tmp_path / "other.safetensors")
    told = refusal([*files, Path(vision)], tmp_path / "made")
    assert told.startswith("Expected one image encoder for Wan 2.1, found ") and told.endswith(": name one of them.")
    second = Path(shutil.copy(twins("wan21").file, tmp_path / "second.safetensors"))
    assert "Expected one denoiser of Wan 2.1, found" in refusal([*files, second], tmp_path / "made")
    told = refusal([*files, twins("svd").file], tmp_path / "made")
    assert told.startswith("Expected the files of one model, found ") and f"{SVD_FILE} of Stable Video" in told


def test_foreign_files_are_refused(twins: Twins, tmp_path: Path) -> None:  # noqa: F811
    save_file({"weight": torch.ones(2)}, tmp_path / "foreign.safetensors")
    foreign = tmp_path / "foreign.safetensors"
    told = refusal([*twins("svd").files, foreign], tmp_path / "made")
    assert told == f"{foreign}: expected a network of Stable Video Diffusion, found tensors that it has no use for."
    assert "found 1 of another model, such as weight" in refusal([foreign], tmp_path / "made")
    for given in ({"kind": "512"}, {"folders": [tmp_path]}):
        told = refusal(twins("svd").files, tmp_path / "made", **given)  # type: ignore[arg-type]
        assert told.startswith("--parts and --kind are for DynamiCrafter alone")
