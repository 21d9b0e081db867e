"""The grid of tiles into which an image is cut. Grids are (width, height) or (height, width), as in their source."""

from __future__ import annotations


def closest_grid(height: int, width: int, tile: int, fewest: int, most: int) -> tuple[int, int]:
    """(across, down) with the aspect ratio nearest to that of the image. Of equal ones, the larger, if the image fills
    at least half of it.

    Source: transformers `image_processing_got_ocr2.py` `get_optimal_tiled_canvas` (InternVL),
    `image_processing_lfm2_vl.py` `find_closest_aspect_ratio`.
    """
    grids = [(across, down) for across in range(1, most + 1) for down in range(1, most + 1)]
    grids = sorted((grid for grid in grids if fewest <= grid[0] * grid[1] <= most), key=lambda grid: grid[0] * grid[1])
    best, best_difference = (1, 1), float("inf")
    for grid in grids:
        difference = abs(width / height - grid[0] / grid[1])
        fills = height * width > 0.5 * tile**2 * grid[0] * grid[1]
        if difference < best_difference or (difference == best_difference and fills):
            best, best_difference = grid, difference
    return best


def canvas_without_loss(height: int, width: int, tile: int, most: int) -> tuple[int, int]:
    """(down, across) of the canvas that enlarges the image least. If none is large enough, the canvas that shrinks it
    least. Of equal ones, the smallest.

    Source: transformers `image_processing_llama4.py` `get_best_fit`, `image_processing_mllama.py`
    `get_optimal_tiled_canvas`.
    """
    grids = [(down, across) for down in range(1, most + 1) for across in range(1, most // down + 1)]
    scales = {grid: min(grid[0] * tile / height, grid[1] * tile / width) for grid in grids}
    enlarging = [scale for scale in scales.values() if scale >= 1]
    chosen = min(enlarging) if enlarging else max(scales.values())
    return min((grid for grid in grids if scales[grid] == chosen), key=lambda grid: grid[0] * grid[1])


def best_resolution(height: int, width: int, resolutions: list[tuple[int, int]]) -> tuple[int, int]:
    """(height, width) of the listed resolution that keeps most of the image and has the least unused area.

    Source: transformers `image_processing_utils.py`, `select_best_resolution`.
    """
    best, best_kept, best_wasted = resolutions[0], -1, 0
    for target_height, target_width in resolutions:
        scale = min(target_width / width, target_height / height)
        kept = min(int(width * scale) * int(height * scale), height * width)
        wasted = target_height * target_width - kept
        if kept > best_kept or (kept == best_kept and wasted < best_wasted):
            best, best_kept, best_wasted = (target_height, target_width), kept, wasted
    return best
