"""The table and the pictures say what the rows hold."""

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from i2v_tensorrt.benchmarks.ladder.document import Document
from i2v_tensorrt.benchmarks.ladder.draw import ticks
from i2v_tensorrt.benchmarks.ladder.plot import save_plot
from i2v_tensorrt.benchmarks.ladder.row import MEASURED, Row
from i2v_tensorrt.benchmarks.ladder.sweep_plot import save_sweep_plot
from i2v_tensorrt.benchmarks.ladder.table import line, markdown


def cells(page: str, title: str, table: int) -> dict[str, str]:
    """A row of the page's table of that number, by heading."""
    tables = [block.splitlines() for block in page.split("\n\n") if block.startswith("|")]
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in tables[table]]
    return next(dict(zip(rows[0], row, strict=True)) for row in rows[2:] if row[0] == title)


def test_ratios_are_to_row_0_and_to_the_best_of_torch_compile(document: Document) -> None:
    assert document.ratios(document.rows["inductor"]) == {"reference": 16.0, "compiled": 1.28}
    assert document.ratios(document.rows["tensorrt"]) == {}
    del document.rows["diffusers-fp32"]
    assert document.ratios(document.rows["eager"]) == {"compiled": 0.64}


def test_tables_of_speed_memory_and_likeness(document: Document) -> None:
    name = "inductor, a title"
    assert cells(markdown(document), name, 0) == {
        "": name, "ms a step": "90.0", "encode": "0.050", "denoise": "4.50", "decode": "0.300",
        "write": "0.150", "clip hot": "5.00", "against row 0": "16.00x", "against torch.compile": "1.28x",
    }  # fmt: skip
    figures = {
        "gpu_resident_denoise_gib": 6.0, "gpu_resident_decode_gib": 6.5, "gpu_resident_used_gib": 8.25,
        "gpu_offloaded_decode_gib": 4.75, "latents_snr_db": 200.0, "latents_max_abs": 0.00012, "core_tflop": 9.0,
        "interpolate_s": 0.1234, "upscale_s": 0.5,
    }  # fmt: skip
    document.rows["inductor"] = document.rows["inductor"].adding(figures)
    page = markdown(document)
    assert cells(page, name, 1) == {"": name, "GPU, resident": "6.50 (8.25)", "GPU, offloaded": "4.75"}
    assert cells(page, name, 2) == {"": name, "SNR, dB": "equal", "greatest difference": "1.2e-04"}
    assert (cells(page, name, 0)["interpolate"], cells(page, name, 0)["upscale"]) == ("0.123", "0.500")
    assert cells(page, "eager, a title", 0)["TFLOP/s"] == "50", "9 TFLOP in 180 ms"


def test_rows_that_cannot_run_say_why(document: Document) -> None:
    assert line(document, document.rows["tensorrt"]) == "TensorRT: TensorRT is not here."
    assert line(document, document.rows["eager"]).startswith("eager, a title: ms a step 180.0, ")
    for _ in range(2):
        assert "- TensorRT: TensorRT is not here." in markdown(document)
        document.rows = {"tensorrt": document.rows["tensorrt"]}  # an empty ladder is a page too


def drawn(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image


def test_the_picture_has_a_line_for_every_row(document: Document, tmp_path: Path) -> None:
    save_plot(document, tmp_path / "whole.png")
    whole = drawn(tmp_path / "whole.png")
    row = document.rows["inductor"]
    document.rows["inductor"] = replace(row, figures={**row.figures, "denoise_s": 4.0})
    save_plot(document, tmp_path / "other.png")
    images = (image.convert("RGB") for image in (whole, drawn(tmp_path / "other.png")))
    assert ImageChops.difference(*images).getbbox() is not None, "it changes with the figures"
    del document.rows["eager"]
    save_plot(document, tmp_path / "fewer.png")
    fewer = drawn(tmp_path / "fewer.png")
    assert whole.mode == "RGBA" and whole.width == fewer.width == 1600
    assert whole.height - fewer.height == 2 * 46, "the row stands in both panels"
    assert whole.getpixel((0, 0))[3] == 0, "corners are clear"  # type: ignore[index]
    assert whole.getpixel((800, 20))[3] == 255, "the card is not, whatever page it lies on"  # type: ignore[index]


def test_bars_are_as_long_as_their_seconds(document: Document, tmp_path: Path) -> None:
    blue = (52, 104, 214)
    document.rows = {name: document.rows[name] for name in ("compile-default", "inductor")}
    save_plot(document, tmp_path / "a.png")
    image = drawn(tmp_path / "a.png").convert("RGB")
    counts = [
        sum(image.getpixel((x, y)) == blue for x in range(300, image.width)) for y in range(150, image.height - 100)
    ]
    longest = sorted({count for count in counts if count > 100})
    assert longest[-1] / longest[0] == pytest.approx(8 / 5, abs=0.02)


@pytest.mark.parametrize("memory", [True, False], ids=["gpu", "cpu"])
def test_the_sweep(document: Document, tmp_path: Path, memory: bool) -> None:
    peak = {"peak_gib": 3.0} if memory else {"peak_gib": None}
    document.sweep = [
        {"axis": "frames", "label": "8 frames", "step_ms": 10.0, "tflop": 1.0, "tflop_per_s": 100.0, **peak},
        {"axis": "frames", "label": "16 frames", "step_ms": 20.0, "tflop": 2.0, "tflop_per_s": 100.0, **peak},
        {"axis": "size", "label": "1024x1024", "reason": "Memory ends here: the GPU has 8 GiB."},
        {"axis": "steps", "label": "10 steps", "steps": 10, "denoise_s": 0.2},
    ]
    save_sweep_plot(document, tmp_path / "sweep.png")
    assert drawn(tmp_path / "sweep.png").size == (1600, 680)
    page = markdown(document)
    assert "| size | 1024x1024 | – | – | – | – | – | Memory ends here: the GPU has 8 GiB. |" in page
    assert ("3.00" in page) == memory


def test_without_a_clip_or_a_point_there_is_no_picture(document: Document, tmp_path: Path) -> None:
    document.rows = {"a": Row("a", "A", MEASURED, figures={"step_ms": 1.0})}
    save_plot(document, tmp_path / "none.png")
    document.sweep = [{"axis": "frames", "label": "8 frames", "reason": "Memory ends here."}]
    save_sweep_plot(document, tmp_path / "sweep.png")
    assert list(tmp_path.glob("*.png")) == []


@pytest.mark.parametrize(
    ("top", "expected"),
    [(0, [0]), (1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (12, [0, 2.5, 5, 7.5, 10]), (78.6, [0, 20, 40, 60]), (0.03, None)],
)
def test_ticks_are_round(top: float, expected: list[float] | None) -> None:
    found = ticks(top)
    assert found == (pytest.approx(expected) if expected else found)
    assert found[-1] <= top and len(found) <= 7
    assert expected or len(found) > 3
