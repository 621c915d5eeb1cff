"""Frames of a clip on one picture."""

import pytest
import torch

from i2v_tensorrt.nodes.host.preview_grid import MOST_FRAMES, Sheet


@pytest.mark.parametrize(
    ("num_frames", "columns", "rows", "frames"),
    [(1, 1, 1, 1), (2, 2, 1, 2), (4, 2, 2, 4), (5, 3, 2, 5), (9, 3, 3, 9), (16, 3, 3, MOST_FRAMES)],
)
def test_it_is_as_square_as_the_count_allows(num_frames: int, columns: int, rows: int, frames: int) -> None:
    assert Sheet.of_clip(num_frames, num_frames / 8) == Sheet(columns, rows, frames, num_frames / 8)


@pytest.mark.parametrize("num_frames", [1, 2, 5, 9, 10, 16, 81])
def test_the_frames_lie_in_their_order(num_frames: int) -> None:
    """Each frame is of one value, its number; rows and columns are read back as a page would cut them."""
    sheet = Sheet.of_clip(num_frames, num_frames / 8)
    latents = torch.arange(1.0, num_frames + 1)[:, None, None, None].expand(-1, 4, 2, 3)
    laid = sheet.lay(latents)
    assert laid.shape == (1, 4, sheet.rows * 2, sheet.columns * 3)
    cut = [tile for row in laid[0].split(2, dim=1) for tile in row.split(3, dim=2)]
    values = [tile.unique().tolist() for tile in cut]
    assert all(len(value) == 1 for value in values)
    numbers = [value[0] for value in values]
    assert numbers[: sheet.frames] == sorted(set(numbers[: sheet.frames]))
    assert numbers[0] == 1
    assert numbers[sheet.frames - 1] == num_frames
    assert not any(numbers[sheet.frames :])
