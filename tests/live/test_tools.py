"""The tools in a live ComfyUI: Engine Doctor, Engine Manager, Compare Videos, Benchmark."""

from pathlib import Path
from typing import Any

import pytest

from i2v_tensorrt.remote.comfyui.client import ComfyClient, RunResult
from i2v_tensorrt.tests.live.answers import (
    engines_in,
    failure,
    file_names,
    pictures,
    ran,
    refused,
    run,
    sentences,
    text,
)
from i2v_tensorrt.tests.live.device import Device, rare_encoders
from i2v_tensorrt.tests.live.graphs import Prompt, builder, clip, node, only
from i2v_tensorrt.tests.live.ids import BUILDER, LOADER, PICTURE

TOOL, SHOWN = "30", "31"
COLUMNS = ["key", "network", "built for", "size", "match", "shapes", "state"]


def table(result: RunResult) -> list[list[str]]:
    """The table on the tool, its heading first."""
    return result.outputs[TOOL]["table"]


def markdown(result: RunResult) -> str:
    """What a node behind the tool got as text."""
    return result.outputs[SHOWN]["text"][0]


def with_report(tool: dict[str, Any]) -> Prompt:
    """A tool, and a node that shows its first output."""
    return {TOOL: tool, SHOWN: node("PreviewAny", source=[TOOL, 0])}


class TestEngineDoctor:
    def test_it_says_what_auto_takes_on_this_device(self, client: ComfyClient) -> None:
        report = with_report(node("I2VTRT_EngineDoctor"))
        first, result = run(client, report), run(client, report)
        assert TOOL in ran(first) & ran(result), "it looks anew at every run"
        rows = {row[0]: row[1:] for row in table(result)}
        (chosen,) = [name.removeprefix("backend ") for name, (state, _) in rows.items() if state == "auto takes this"]
        assert text(result, TOOL).startswith(f"auto takes {chosen}")
        assert f"takes the first that can run: {chosen}" in rows["why"][1]
        assert ("backend eager" in rows) and ("device" in rows)
        lines = markdown(result).splitlines()
        assert lines[:2] == ["| what | state | found |", "| --- | --- | --- |"]
        assert len(lines) == len(table(result)) + 1


def manager(action: str = "list", engine: str = "") -> dict[str, Any]:
    return node("I2VTRT_EngineManager", action=action, engine=engine)


@pytest.fixture
def key(client: ComfyClient, picture: str, device: Device, builder_backend: None) -> str:
    """The first digits of an engine that no other test uses."""
    before = rare_encoders(client, device)
    run(client, only(clip(picture), LOADER) | {BUILDER: builder(precision=device.rare)})
    (found,) = rare_encoders(client, device) - before
    return found


class TestEngineManager:
    def test_an_engine_is_listed_verified_removed_and_gone(
        self, client: ComfyClient, key: str, base_directory: Path
    ) -> None:
        (folder,) = (path for path in engines_in(base_directory) if path.name.startswith(key))
        others = engines_in(base_directory) - {folder}

        result = run(client, with_report(manager("verify", key)))
        assert table(result)[0] == COLUMNS
        ((found, *_, state),) = table(result)[1:]
        assert (found, state) == (key, "whole")
        assert f"| {key} | image_encoder | " in markdown(result)

        largest = max(folder.rglob("*"), key=lambda path: path.stat().st_size)
        content = bytearray(largest.read_bytes())
        content[len(content) // 2] ^= 1
        largest.write_bytes(content)
        result = run(client, {TOOL: manager("verify")})
        assert text(result, TOOL).startswith(f"{len(others) + 1} engine")
        assert text(result, TOOL).endswith(", 1 damaged")

        result = run(client, {TOOL: manager("delete", key)})
        assert [row[0] for row in table(result)[1:]] == [key]
        assert text(result, TOOL).startswith("removed 1 engine, ")
        assert engines_in(base_directory) == others

        assert f"has a key that begins with {key}." in failure(client, {TOOL: manager("delete", key)})
        unnamed = failure(client, {TOOL: manager("delete")})
        assert "One engine is named by at least 8 digits of its key, found ''." in unnamed

    def test_stale_removes_nothing_that_this_host_can_use(self, client: ComfyClient, base_directory: Path) -> None:
        before = engines_in(base_directory)
        result = run(client, {TOOL: manager("delete stale")})
        assert text(result, TOOL) == "removed 0 engines, 0.0 MB, and 0 leftovers of dead builds"
        assert engines_in(base_directory) == before

    @pytest.mark.parametrize("name", ["../../custom_nodes", "/etc", "ABCDEF012345", "a" * 65])
    def test_what_is_no_key_is_refused_before_anything_runs(self, client: ComfyClient, name: str) -> None:
        told = sentences(refused(client, {TOOL: manager("delete", name)}), TOOL, "engine")
        assert told == {f"An engine is named by digits of its key, 0 to 9 and a to f, found {name[:80]!r}."}


def grey(level: int, count: int = 3, width: int = 64, height: int = 48) -> dict[str, Any]:
    return node("EmptyImage", width=width, height=height, batch_size=count, color=level * 0x010101)


def compare(one: dict[str, Any], other: dict[str, Any], **inputs: Any) -> Prompt:
    return {
        "1": one,
        "2": other,
        TOOL: node("I2VTRT_CompareVideos", frames_a=["1", 0], frames_b=["2", 0], **inputs),
        "both": node("PreviewImage", images=[TOOL, 0]),
        "heat": node("PreviewImage", images=[TOOL, 1]),
        SHOWN: node("PreviewAny", source=[TOOL, 2]),
    }


class TestCompareVideos:
    def test_a_known_difference_is_measured_and_shown(self, client: ComfyClient) -> None:
        result = run(client, compare(grey(51), grey(102), label_a="", label_b=""))
        rows = {row[0]: row[1] for row in table(result)}
        assert rows["clip"] == "3 frames of 64x48"
        assert rows["PSNR"] == rows["PSNR, worst"] == "13.98 dB"  # 20 log10(255 / 51)
        assert rows["greatest difference"] == "0.2000"
        assert rows["flicker, first"] == rows["flicker, second"] == "1.0000"
        assert "| PSNR | 13.98 dB |" in markdown(result)
        both, heat = pictures(client, result, "both"), pictures(client, result, "heat")
        assert [image.size for image in both] == [(64 + 8 + 64, 48)] * 3
        assert both[0].getpixel((0, 0)) == (51, 51, 51) and both[0].getpixel((135, 47)) == (102, 102, 102)
        assert [image.size for image in heat] == [(64, 48)] * 3
        assert heat[0].getpixel((5, 5)) == (255, 255, 191)

    def test_a_clip_against_itself_is_equal_and_labels_take_a_strip_of_their_own(self, client: ComfyClient) -> None:
        result = run(client, compare(grey(51), grey(51)))
        assert text(result, TOOL) == "PSNR equal, SSIM 1.0000"
        assert pictures(client, result, "heat")[0].getextrema() == ((0, 0),) * 3
        (first, *_) = pictures(client, result, "both")
        assert first.height > 48
        strip = first.crop((0, 0, 64, first.height - 48)).convert("L")
        assert max(strip.tobytes()) > 200

    @pytest.mark.parametrize(
        ("other", "told"),
        [
            (grey(0, count=2), "3 frames of 64x48 and 2 frames of 64x48"),
            (grey(0, width=48), "3 frames of 64x48 and 3 frames of 48x48"),
        ],
    )
    def test_what_does_not_fit_is_one_sentence(self, client: ComfyClient, other: dict[str, Any], told: str) -> None:
        expected = f"Expected two clips of one size and of as many frames, found {told}."
        assert failure(client, compare(grey(51), other)).endswith(f"InputError: {expected}")


def benchmark(picture: str, **inputs: Any) -> Prompt:
    settings = {"rows": "quick", "width": 64, "height": 64, "num_frames": 2, "steps": 2, "minutes": 10}
    return {
        LOADER: clip(picture)[LOADER],
        TOOL: node("I2VTRT_Benchmark", model=[LOADER, 0], **{**settings, **inputs}),
        "plot": node("PreviewImage", images=[TOOL, 0]),
        SHOWN: node("PreviewAny", source=[TOOL, 1]),
    }


class TestBenchmark:
    @pytest.mark.slow
    @pytest.mark.usefixtures("builder_backend")
    def test_it_measures_draws_and_cleans_up(
        self, client: ComfyClient, picture: str, base_directory: Path, device: Device
    ) -> None:
        result, eager = run(client, benchmark(picture)), f"eager PyTorch, {device.precision}"
        rows = {row[0]: row for row in table(result)[1:]}
        assert {"diffusers, fp32", eager} < set(rows)
        assert all(float(row[1]) > 0 and row[-1] == "" for row in rows.values())
        assert float(rows[eager][4]) == pytest.approx(1, abs=0.01)
        (plot,) = pictures(client, result, "plot")
        assert plot.width > 1000 and len(plot.getcolors(1 << 24) or ()) > 10
        assert markdown(result).startswith("# The ladder: ")
        assert text(result, TOOL).startswith("fastest: ")
        values = [value for value, _ in result.progress[TOOL]]
        assert values == sorted(values) and values[-1] == 100
        assert not list((base_directory / "temp").glob("i2v_benchmark_*"))

    def test_an_interrupt_ends_it_and_leaves_nothing(
        self, client: ComfyClient, picture: str, base_directory: Path
    ) -> None:
        before = file_names(base_directory / "models" / "i2v_engines")

        def hear(event: Any) -> None:
            if event.kind == "executing" and event.data["node"] == TOOL:
                client.interrupt(event.data["prompt_id"])

        result = client.run(benchmark(picture, steps=3), hear)
        assert (result.status, result.error) == ("interrupted", f"node {TOOL} (I2VTRT_Benchmark) was interrupted")
        assert not list((base_directory / "temp").glob("i2v_benchmark_*"))
        assert file_names(base_directory / "models" / "i2v_engines") == before
        assert client.run({PICTURE: node("LoadImage", image=picture), "9": node("PreviewImage", images=[PICTURE, 0])})

    def test_a_size_that_no_network_takes_is_refused(self, client: ComfyClient, picture: str) -> None:
        (told,) = sentences(refused(client, benchmark(picture, width=65)), TOOL, "width")
        assert told == "Value 65 bigger than max of 2048 in steps of 8: width"
