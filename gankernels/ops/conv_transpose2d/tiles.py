"""How the GEMMs of kernels.py are cut: a table by compute capability and precision, and the choice by size.

A table, and not ``triton.autotune``: the choice is the same in every process, costs no warm-up, and the sums of a
gradient are added in an order that depends on shapes and the GPU's generation alone. Not yet timed on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import triton

# Below this many programs a large GPU (132 multiprocessors) is not full, and a smaller tile is taken.
_FULL = 132
# The smallest side of a tile that tensor cores take in every precision.
LEAST = 16
# Numbers of the largest tile whose left operand passes through registers; more spills.
_TRANSFORMED = {"16": 128 * 128, "tf32": 128 * 128, "ieee": 32 * 32, "fp64": 32 * 32}
# A weight gradient's pixels are split until there are about this many programs.
_SPLIT_UNTIL = 512


class Tile(NamedTuple):
    """Rows, columns and depth of a program's step, its warps, and the steps whose loads are in flight."""

    m: int
    n: int
    k: int
    num_warps: int
    num_stages: int


# Largest first. "ieee" is fp32 without tensor cores; fp64 has tensor cores and few registers.
_TILES: dict[tuple[int, str], tuple[Tile, ...]] = {
    (80, "16"): (Tile(128, 128, 32, 8, 4), Tile(128, 64, 32, 4, 4), Tile(64, 64, 32, 4, 4), Tile(64, 32, 64, 4, 3)),
    (90, "16"): (Tile(128, 256, 64, 8, 3), Tile(128, 128, 64, 8, 3), Tile(128, 64, 64, 8, 4), Tile(64, 32, 64, 4, 4)),
    (100, "16"): (Tile(128, 256, 64, 8, 3), Tile(128, 128, 64, 8, 3), Tile(128, 64, 64, 8, 3), Tile(64, 32, 64, 4, 4)),
    (80, "tf32"): (Tile(128, 128, 16, 8, 4), Tile(128, 64, 16, 4, 4), Tile(64, 64, 32, 4, 3), Tile(64, 32, 32, 4, 3)),
    (90, "tf32"): (Tile(128, 128, 32, 8, 3), Tile(128, 64, 32, 4, 3), Tile(64, 64, 32, 4, 3), Tile(64, 32, 32, 4, 3)),
    (100, "tf32"): (Tile(128, 128, 32, 8, 3), Tile(128, 64, 32, 8, 3), Tile(64, 64, 32, 8, 3), Tile(64, 32, 32, 4, 3)),
    (0, "ieee"): (Tile(64, 64, 16, 8, 2), Tile(32, 32, 16, 4, 2)),
    (0, "fp64"): (Tile(32, 32, 16, 4, 2),),
}


def table(capability: int, precision: str, transformed: bool) -> tuple[Tile, ...]:
    """The tiles for a compute capability (80, 89, 90, 120, ...) in ``"16"``, ``"tf32"``, ``"ieee"`` or ``"fp64"``.

    Args:
        capability: those of sm_80 fit every later GPU; sm_120's multiprocessors are like sm_80's, not sm_100's.
        precision: of the product.
        transformed: whether the left operand passes through registers (a batch norm, or a gate), which leaves too few
            of them for the widest tiles.
    """
    known = [c for c, p in _TILES if p == precision]
    found = _TILES[max((c for c in known if c <= capability < 120), default=min(known)), precision]
    return tuple(tile for tile in found if not transformed or tile.m * tile.n <= _TRANSFORMED[precision])


def every() -> Iterator[tuple[int, str, Tile, bool]]:
    """(capability, precision, tile, transformed) of all that :func:`table` may answer on sm_80, sm_90 and sm_100."""
    for precision in dict.fromkeys(precision for _, precision in _TILES):
        for capability in (80, 90, 100):
            for transformed in (False, True):
                for tile in table(capability, precision, transformed):
                    yield capability, precision, tile, transformed


def choose(tiles: tuple[Tile, ...], rows: int, columns: int, depth: int, copies: int) -> Tile:
    """The first tile that is no wider than the columns and fills the GPU, or the last; cut to the columns and depth.

    Args:
        tiles: largest first.
        rows, columns: of the product; ``copies`` of it run in one launch (the phases, or the taps).
        depth: of one run of the inner loop's dimension that lies together in memory: the channels.
    """
    width, deep = (max(triton.next_power_of_2(size), LEAST) for size in (columns, depth))
    fitting = [tile for tile in tiles if tile.n <= width] or [tiles[-1]]
    for tile in fitting:
        if triton.cdiv(rows, tile.m) * triton.cdiv(columns, tile.n) * copies >= _FULL:
            break
    return tile._replace(n=min(tile.n, width), k=min(tile.k, deep))


def splits(programs: int, depth_blocks: int) -> tuple[int, int]:
    """Into how many runs the inner loop is split where there are ``programs`` of them, and the steps of a run."""
    wanted = max(1, min(depth_blocks, _SPLIT_UNTIL // programs))
    steps = triton.cdiv(depth_blocks, wanted)
    return triton.cdiv(depth_blocks, steps), steps
