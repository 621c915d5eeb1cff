"""Single files open as the folders that they were made from, bit for bit, or a sentence says what is missing."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from shutil import copyfile, copytree

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from i2v_tensorrt.cli.convert_command import main
from i2v_tensorrt.common.errors import CheckpointError
from i2v_tensorrt.pipeline.convert.link import linked_folder
from i2v_tensorrt.pipeline.denoising.schedulers import SamplerSettings
from i2v_tensorrt.pipeline.models.checkpoints import file_digests
from i2v_tensorrt.pipeline.models.checkpoints.diffusers_folder import LINK, LINKED
from i2v_tensorrt.pipeline.models.registry import load_network, open_configuration, open_model
from i2v_tensorrt.pipeline.models.single_files import find_sources
from i2v_tensorrt.pipeline.models.tokenizers import tokenize_padded
from i2v_tensorrt.pipeline.request import ClipRequest
from i2v_tensorrt.runtime.clip_plan import Denoising

from ...helpers.loras import PUBLISHED, layers, write_lora
from ...helpers.single_files import (
    HIGH,
    LOW,
    NAMES_OF,
    SVD_FILE,
    TEXT_FILE,
    VISION_FILE,
    write_svd_file,
    write_svd_folder,
    write_wan_files,
    write_wan_folder,
)
from ...helpers.stages import decoded, encoded, engines_of, sampled

KINDS = ("svd", "wan21", "a14b", "ti2v")
each_kind = pytest.mark.parametrize("kind", KINDS)


class Twin:
    """A checkpoint as a folder, and as single files in ComfyUI's folders."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.models = folder / "models"
        if kind == "svd":
            self.folder = write_svd_folder(folder / "stored")
            self.file = write_svd_file(self.folder, self.models)
        else:
            self.folder = write_wan_folder(folder / "stored", kind)
            self.file = write_wan_files(self.folder, self.models, kind)

    @property
    def files(self) -> list[Path]:
        return sorted(self.models.rglob("*.safetensors"))

    def linked(self, root: Path) -> Path:
        return linked_folder(find_sources(self.file, self.files), root)


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Twin]:
    """Gives both forms of a kind; read them, never change them."""
    return cache(lambda kind: Twin(kind, tmp_path_factory.mktemp(kind)))


@pytest.fixture(scope="module")
def linked(twins: Callable[[str], Twin], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the folder that leads to the single files of a kind."""
    return cache(lambda kind: twins(kind).linked(tmp_path_factory.mktemp("links")))


def clip(folder: Path, store: Path, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and frames of a small clip in eager PyTorch."""
    engines = engines_of(folder, store)
    request = ClipRequest(Image.new("RGB", (70, 50), "teal"), "a boat in rain", "blurry", 64, 64, frames, 8)
    conditioning = encoded(engines, request)
    latents = sampled(engines, conditioning, Denoising(seed=5, guidance_scale=4.0, sampler=SamplerSettings(2, "euler")))
    return latents, decoded(engines, latents, 8)


@each_kind
def test_the_clip_is_the_folders_bit_for_bit(
    twins: Callable[[str], Twin], linked: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    frames = 4 if kind == "svd" else 5
    found, expected = (clip(folder, tmp_path, frames) for folder in (linked(kind), twins(kind).folder))
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    assert expected[0].std() > 0


@each_kind
def test_no_weight_is_copied(linked: Callable[[str], Path], kind: str) -> None:
    assert not [path for path in linked(kind).rglob("*") if path.suffix == ".safetensors"]
    model = open_model(linked(kind))
    assert all(part.linked for part in model.checkpoint.parts.values() if part.has_network)


@each_kind
def test_configurations_are_the_folders(twins: Callable[[str], Twin], linked: Callable[[str], Path], kind: str) -> None:
    found, expected = (open_model(folder).checkpoint.parts for folder in (linked(kind), twins(kind).folder))
    assert found.keys() == expected.keys()
    for name, part in found.items():
        own = expected[name].config
        differing = {key for key, value in part.config.items() if key in own and own[key] != value}
        assert differing <= {"sample_size", "tokenizer_class"}, name
        assert part.class_name.replace("Fast", "") == expected[name].class_name.replace("Fast", "")


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@each_kind
def test_weights_are_cast_as_the_libraries_cast_them(
    twins: Callable[[str], Twin], linked: Callable[[str], Path], kind: str, precision: str
) -> None:
    models = [open_model(folder) for folder in (linked(kind), twins(kind).folder)]
    for name, part in models[0].checkpoint.parts.items():
        if part.has_network:
            found, expected = (model.part(name, precision).state_dict() for model in models)
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[key], expected[key]) for key in found)
            assert all(found[key].dtype == expected[key].dtype for key in found)


@pytest.mark.parametrize("kind", ["svd", "a14b"])
def test_another_process_loads_it(linked: Callable[[str], Path], kind: str) -> None:
    model = open_model(linked(kind))
    source = model.source("core", "fp32")
    assert source.size_bytes == model.size_bytes("core", "fp32")
    network, own = load_network(**source.arguments), model.load("core", "fp32")
    assert all(torch.equal(x, y) for x, y in zip(network.parameters(), own.parameters(), strict=True))
    hollow = open_configuration(linked(kind)).load("core", "fp32")
    assert {parameter.device.type for parameter in hollow.parameters()} == {"meta"}


def test_a_file_of_several_networks_is_read_once_for_its_digest(
    twins: Callable[[str], Twin], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = linked_folder(find_sources(copied(twins("svd").file, tmp_path), []), tmp_path)
    read: list[Path] = []
    add_file = file_digests._add_file
    monkeypatch.setattr(
        file_digests, "_add_file", lambda sha, path, tell: (read.append(path), add_file(sha, path, tell))
    )
    monkeypatch.setattr(file_digests, "_is_fresh", lambda path: False)
    model = open_model(folder)
    model.take_digests(lambda done: None)
    digests = {part.sha256 for part in model.checkpoint.parts.values()}
    assert len(digests) == len(model.checkpoint.parts)
    assert [path.name for path in read].count(SVD_FILE) == 1


def test_a_file_that_changed_has_another_digest(twins: Callable[[str], Twin], tmp_path: Path) -> None:
    file = copied(twins("svd").file, tmp_path)
    before = open_model(linked_folder(find_sources(file, []), tmp_path)).encode_sha256
    tensors = load_file(file)
    tensors["first_stage_model.encoder.conv_in.bias"] += 1
    file.unlink()
    save_file(tensors, file)
    assert open_model(linked_folder(find_sources(file, []), tmp_path)).encode_sha256 != before


def test_a_lora_is_merged(twins: Callable[[str], Twin], linked: Callable[[str], Path], tmp_path: Path) -> None:
    from i2v_tensorrt.pipeline.models.wan.lora_names import published

    found, own = (open_model(folder) for folder in (linked("wan21"), twins("wan21").folder))
    path = tmp_path / "lora.safetensors"
    modules = {name: shape for name, shape in layers(own.checkpoint.parts["transformer"]).items() if "blocks" in name}
    write_lora(path, modules, PUBLISHED, published)
    one, other = (model.with_adapter(path, 0.5).part("transformer", "fp32").state_dict() for model in (found, own))
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_a_prefix_of_the_denoiser_is_left_out(twins: Callable[[str], Twin], tmp_path: Path) -> None:
    twin = twins("ti2v")
    file = write_wan_files(twin.folder, tmp_path / "models", "ti2v", "model.diffusion_model.")
    model = open_model(linked_folder(find_sources(file, twin.files), tmp_path))
    own = open_model(twin.folder).part("transformer", "fp32").state_dict()
    assert all(torch.equal(x, own[name]) for name, x in model.part("transformer", "fp32").state_dict().items())


def test_both_experts_come_in_their_order(twins: Callable[[str], Twin]) -> None:
    twin = twins("a14b")
    for name in (HIGH, LOW):
        found = find_sources(twin.file.with_name(name), twin.files)
        assert [found.files[part].name for part in ("transformer", "transformer_2")] == [HIGH, LOW]


def test_the_most_precise_of_several_is_taken_and_named(twins: Callable[[str], Twin], tmp_path: Path) -> None:
    twin = twins("ti2v")
    text = next(path for path in twin.files if path.name == TEXT_FILE)
    half, copy = tmp_path / "a_half.safetensors", tmp_path / "z_copy.safetensors"
    save_file({name: x.half() if x.is_floating_point() else x for name, x in load_file(text).items()}, half)
    copyfile(text, copy)
    found = find_sources(twin.file, [half, *twin.files, copy])
    assert found.files["text_encoder"] == text
    assert f"text_encoder from {TEXT_FILE}, the first of 3 that fit" in found.lines


def test_a_kindred_familys_vae_is_taken_where_there_is_no_other(twins: Callable[[str], Twin], tmp_path: Path) -> None:
    twin = twins("wan21")
    vae = next(path for path in twin.files if path.name.startswith("wan_"))
    kindred = tmp_path / "qwen_image_vae.safetensors"
    save_file({name: tensor.double() for name, tensor in load_file(vae).items()}, kindred)
    assert find_sources(twin.file, [kindred, *twin.files]).files["vae"] == vae
    others = [path for path in twin.files if path != vae]
    assert find_sources(twin.file, [kindred, *others]).files["vae"] == kindred


@pytest.mark.parametrize(
    ("kind", "gone", "words"),
    [
        ("wan21", ("wan_",), "its VAE is missing: put wan_2.1_vae.safetensors into models/vae."),
        ("ti2v", ("wan_",), "its VAE is missing: put wan2.2_vae.safetensors into models/vae."),
        ("wan21", ("clip",), "its image encoder is missing: put clip_vision_h.safetensors into models/clip_vision."),
        (
            "wan21",
            ("umt5", "clip"),
            "its text encoder and image encoder are missing: put umt5_xxl_fp16.safetensors into models/text_encoders; "
            "put clip_vision_h.safetensors into models/clip_vision.",
        ),
        ("a14b", ("wan2.2_low",), f"expected the other one as {LOW} in models/diffusion_models, not quantized, found"),
    ],
)
def test_what_is_missing_is_named_with_its_folder(
    twins: Callable[[str], Twin], kind: str, gone: tuple[str, ...], words: str
) -> None:
    files = [path for path in twins(kind).files if not path.name.startswith(gone)]
    with pytest.raises(CheckpointError) as caught:
        find_sources(twins(kind).file, files)
    assert words in str(caught.value) and str(caught.value).startswith(f"{NAMES_OF[kind]} is a single file of Wan 2.")


def quantized(path: Path, target: Path) -> Path:
    """The file with its largest tensors in fp8."""
    small = torch.float8_e4m3fn
    save_file({name: x.to(small) if x.ndim == 2 else x for name, x in load_file(path).items()}, target)
    return target


def test_quantized_files_are_told(twins: Callable[[str], Twin], tmp_path: Path) -> None:
    twin = twins("wan21")
    with pytest.raises(CheckpointError, match="whose weights are quantized: ComfyUI's own Load Diffusion Model opens"):
        find_sources(quantized(twin.file, tmp_path / "fp8.safetensors"), twin.files)
    others = [path for path in twin.files if path.name != TEXT_FILE]
    text = quantized(twin.models / "text_encoders" / TEXT_FILE, tmp_path / "umt5_fp8.safetensors")
    with pytest.raises(CheckpointError, match="for the weights of umt5_fp8.safetensors are quantized"):
        find_sources(twin.file, [*others, text])


def test_experts_that_nothing_tells_apart_are_refused(twins: Callable[[str], Twin], tmp_path: Path) -> None:
    file = copied(twins("a14b").file, tmp_path, "mine.safetensors")
    with pytest.raises(CheckpointError, match="expected high or low in its name"):
        find_sources(file, twins("a14b").files)


def test_a_foreign_file_is_refused(twins: Callable[[str], Twin]) -> None:
    for path in (twins("wan21").models / "clip_vision" / VISION_FILE, twins("wan21").models / "gone.safetensors"):
        with pytest.raises(CheckpointError, match="expected the denoiser of a known model"):
            find_sources(path, [])


def test_a_truncated_file_is_refused(twins: Callable[[str], Twin], tmp_path: Path) -> None:
    file = copied(twins("svd").file, tmp_path)
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size - 100)
    with pytest.raises(CheckpointError, match=f"{SVD_FILE} is truncated or not a safetensors file"):
        linked_folder(find_sources(file, []), tmp_path)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("first_stage_model.encoder.conv_in.bias", None, "have all tensors of the VAE, found none for encoder.conv_in"),
        ("model.diffusion_model.out.2.weight", None, "all tensors of the denoiser, found none for 'out.2.weight'"),
        ("model.diffusion_model.more.weight", torch.ones(1), "no tensors beside those of the UNet, found 1, such as"),
        ("model.diffusion_model.out.2.bias", torch.ones(9), "conv_out.bias of the UNet as [4], found [9]"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    twins: Callable[[str], Twin], tmp_path: Path, name: str, change: torch.Tensor | None, words: str
) -> None:
    tensors = {**load_file(twins("svd").file), name: change}
    file = tmp_path / "svd.safetensors"
    save_file({key: tensor for key, tensor in tensors.items() if tensor is not None}, file)
    with pytest.raises(CheckpointError) as caught:
        linked_folder(find_sources(file, []), tmp_path / "links")
    assert words in str(caught.value) and str(file) in str(caught.value)
    assert not list(tmp_path.rglob(LINK))


def test_a_text_encoder_without_its_tokenizer_is_refused(twins: Callable[[str], Twin], tmp_path: Path) -> None:
    twin, file = twins("ti2v"), tmp_path / "umt5.safetensors"
    tensors = load_file(twin.models / "text_encoders" / TEXT_FILE)
    save_file({name: tensor for name, tensor in tensors.items() if name != "spiece_model"}, file)
    with pytest.raises(CheckpointError, match="to have the tensor spiece_model, its tokenizer, found none"):
        linked_folder(
            find_sources(twin.file, [*(path for path in twin.files if path.name != TEXT_FILE), file]), tmp_path
        )


@pytest.mark.parametrize("content", ["{}", "[]", '{"file": 1, "shapes": {}}', '{"file": "a", "shapes": {"b": [-1]}}'])
def test_a_damaged_link_is_refused(linked: Callable[[str], Path], tmp_path: Path, content: str) -> None:
    folder = Path(copytree(linked("svd"), tmp_path.joinpath(*LINKED, "svd")))
    (folder / "unet" / LINK).write_text(content, "utf-8")
    with pytest.raises(CheckpointError, match=LINK):
        open_model(folder)


def test_a_checkpoint_from_elsewhere_leads_to_no_file_outside(linked: Callable[[str], Path], tmp_path: Path) -> None:
    """Whoever made it could name files that are none of the model's."""
    folder = Path(copytree(linked("svd"), tmp_path / "models" / "i2v" / "svd"))
    with pytest.raises(CheckpointError, match="Expected the file .*safetensors, found nothing there"):
        open_model(folder)


def test_a_file_that_went_away_is_named(twins: Callable[[str], Twin], tmp_path: Path) -> None:
    file = copied(twins("svd").file, tmp_path)
    folder = linked_folder(find_sources(file, []), tmp_path)
    file.unlink()
    with pytest.raises(CheckpointError, match=f"Expected the file .*{SVD_FILE}, found nothing there"):
        open_model(folder)


@each_kind
def test_it_is_converted_to_the_folder(twins: Callable[[str], Twin], tmp_path: Path, kind: str) -> None:
    twin, out = twins(kind), tmp_path / "made"
    assert main([str(twin.file), *(str(path) for path in twin.files if path != twin.file), "--out", str(out)]) == 0
    assert not list(out.rglob(LINK))
    found, expected = open_model(out), open_model(twin.folder)
    for name, part in expected.checkpoint.parts.items():
        if part.has_network:
            one, other = (model.part(name, "fp32").state_dict() for model in (found, expected))
            assert all(torch.equal(one[key], other[key]) for key in other)


def test_tokens_are_those_of_the_other_form_of_the_tokenizer(linked: Callable[[str], Path], tmp_path: Path) -> None:
    """The pieces of the model, read by the library that reads tokenizer.json."""
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
    from tokenizers.models import Unigram

    part = open_model(linked("ti2v")).checkpoint.parts["tokenizer"]
    model = SentencePieceProcessor(model_file=str(part.folder / "spiece.model"))  # pyright: ignore[reportCallIssue]
    pieces = [(model.id_to_piece(n), model.get_score(n)) for n in range(len(model))]  # pyright: ignore
    tokenizer = Tokenizer(Unigram(pieces, unk_id=2, byte_fallback=True))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    texts = ["a boat in the rain", "", "seen from the sea 12 times", " ".join(["rain"] * 40)]
    expected = [found.ids for found in tokenizer.encode_batch(texts)]
    ids, counts = tokenize_padded(part, texts, 16)
    assert counts == tuple(map(len, expected)) and counts[-1] > 16
    assert ids[0, : counts[0]].tolist() == expected[0] and not ids[0, counts[0] :].any()
    assert ids[-1].tolist() == [*expected[-1][:15], 1]


def copied(path: Path, folder: Path, name: str = "") -> Path:
    """A copy of a file that a test may change."""
    return Path(copyfile(path, folder / (name or path.name)))
