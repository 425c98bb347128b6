"""Writes the tables of the README and the docs from the committed CSVs.

    python benchmarks/tables.py [--check] [--root FOLDER]

A table stands between ``<!-- table: NAME -->`` and ``<!-- end of table -->``. With ``--check`` nothing is written, and
the exit code is 1 if a file differs from what its figures say. NAME is one of

- an op, by the name of its page ``docs/ops/<op>.md``: all its rows that are ours, on every device;
- ``summary``: a line for each op, over its positions, forward and backward, on CPUs; ``gpu``: the same and the steps,
  on GPUs, or a sentence where none has been measured;
- ``steps``: whole training steps on CPUs; ``iterations``: what a recipe makes of them; ``blocks``: forward and
  backward of single blocks there;
- ``losses``: every contest that the best peer wins, on every device;
- ``profile``: where the time of whole steps goes;
- ``quality``: what each preset learnt; ``parity``: the same on our layers and on stock ones, over seeds.

The figures are those of ``benchmarks/results/<device>/``: ``ops.csv``, ``steps.csv``, and ``*-system-memory.csv`` of
the same form, as ``gankernels bench --csv`` writes them; ``profile.csv``, as ``profile_steps.py`` writes it; and
``benchmarks/results/quality/<device>.csv``, as ``quality.py`` does.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path
from statistics import mean

from gankernels._files import replacing
from gankernels.bench.markdown import (
    blocks_table,
    caption,
    gpu_tables,
    iterations_table,
    losses_table,
    op_table,
    steps_table,
    summary_table,
    table,
)
from gankernels.bench.rows import Row, read_csv
from gankernels.errors import InputError

_FILES = ("ops.csv", "ops-system-memory.csv", "steps.csv", "steps-system-memory.csv")
#: What runs have in common that are compared with each other.
_EXPERIMENT = ("preset", "options", "data", "images", "samples", "fd_features", "precision")
_BLOCK = re.compile(r"(<!-- table: (.+?) -->\n).*?(<!-- end of table -->)", re.DOTALL)


class Figures:
    """The committed rows of every device, and the tables that can be made of them."""

    def __init__(self, root: Path) -> None:
        results = root / "benchmarks" / "results"
        folders = sorted({path.parent for name in _FILES for path in results.glob(f"*/{name}")})
        self.rows = [row for f in folders for name in _FILES if (f / name).exists() for row in read_csv(f / name)]
        quality = [row for path in sorted((results / "quality").glob("*.csv")) for row in read_csv(path, None)]
        profiles = [row for path in sorted(results.glob("*/profile.csv")) for row in read_csv(path, None)]
        on_gpu = [row for row in self.rows if row["driver"]]
        on_cpu = [row for row in self.rows if not row["driver"]]
        self.tables: dict[str, Callable[[str], str]] = {
            "summary": lambda page: summary_table(on_cpu, _op_links(root, page)),
            "steps": lambda page: steps_table(on_cpu),
            "iterations": lambda page: iterations_table(on_cpu),
            "blocks": lambda page: blocks_table(on_cpu),
            "gpu": lambda page: gpu_tables(on_gpu, _op_links(root, page)),
            "losses": lambda page: losses_table(self.rows),
            "profile": lambda page: profile_table(profiles),
            "quality": lambda page: quality_table(quality),
            "parity": lambda page: parity_table(quality),
        }
        for path in (root / "docs" / "ops").glob("*.md"):
            self.tables[path.stem] = self._of_op(path.stem)

    def fill(self, text: str, page: str) -> str:
        """``text``, which is that of ``page``, with every table written anew.

        Raises:
            InputError: a marker names no table.
        """

        def written(match: re.Match[str]) -> str:
            if match[2] not in self.tables:
                raise InputError(f"{page}: got table {match[2]!r}, expected one of {', '.join(sorted(self.tables))}")
            return match[1] + self.tables[match[2]](page) + match[3]

        return _BLOCK.sub(written, text)

    def _of_op(self, op: str) -> Callable[[str], str]:
        return lambda page: op_table(self.rows, op)


def profile_table(rows: Sequence[Row]) -> str:
    """For each device and each step a line for each part that takes 1% of it or more, and one for the step."""
    headers = "step, network, part, calls, ms, share, GFLOP, GFLOP/s, of the floor"

    def line(row: Row, whole: float) -> list[str]:
        ms, gflop, floor = (float(row[column]) for column in ("ms", "gflop", "floor_ms"))
        products = [f"{gflop:.4g}", f"{gflop / ms * 1e3:.0f}"] if gflop else ["", ""]
        share = f"{floor / ms:.0%}" if floor else ""
        names = [row["step"], f"{row['network']}, batch {row['batch']}", row["part"]]
        return [*names, row["calls"] if int(row["calls"]) else "", f"{ms:.4g}", f"{ms / whole:.1%}", *products, share]

    def lines(parts: Sequence[Row]) -> list[list[str]]:
        total = {c: sum(float(part[c]) for part in parts) for c in ("calls", "ms", "gflop", "floor_ms")}
        step = parts[0] | {"part": "**the whole step**"} | {c: f"{value:.9g}" for c, value in total.items()}
        return [line(row, total["ms"]) for row in (step, *parts) if float(row["ms"]) >= 0.01 * total["ms"]]

    blocks = []
    for device, members in groupby(rows, key=lambda row: row["device"]):
        own = list(members)
        steps = [list(parts) for _, parts in groupby(own, key=lambda row: (row["step"], row["network"], row["dtype"]))]
        blocks.append(f"{caption(device, own)}\n\n{table(headers, [cells for step in steps for cells in lines(step)])}")
    return "\n".join(blocks) or "Not measured yet.\n"


def quality_table(rows: Sequence[Row]) -> str:
    """For each device a line for each run that stands alone: what it saw, what it took and what it learnt."""
    headers = (
        "preset, parameters of G and D, images, processor minutes, accuracy, lowest class, samples per class, "
        "Frechet distance"
    )

    def line(row: Row) -> list[str]:
        return [
            f"`{row['preset']}`",
            f"{int(row['g_parameters']):,} and {int(row['d_parameters']):,}",
            f"{int(row['images']):,}",
            f"{float(row['processor_seconds']) / 60:.1f}",
            f"**{float(row['accuracy']):.2f}** (real: {float(row['classifier_test_accuracy']):.2f})",
            f"{row['lowest_class']}, {float(row['lowest_class_accuracy']):.2f}",
            f"{row['seen_per_class_min']} to {row['seen_per_class_max']} of {int(row['samples']):,}",
            f"**{float(row['fd']):.1f}** (real: {float(row['fd_floor']):.1f}), {row['fd_features']}",
        ]

    blocks = []
    for device, members in groupby(rows, key=lambda row: row["device"]):
        own = list(members)
        alone = [row for runs in _experiments(own) if len(_providers(runs)) == 1 for row in runs]
        if alone:
            blocks.append(f"{caption(device, alone)}\n\n{table(headers, map(line, alone))}")
    return "\n".join(blocks) or "Not measured yet.\n"


def parity_table(rows: Sequence[Row]) -> str:
    """For each device and each run that was made on our layers and on stock ones a line for both: means and ranges."""
    headers = "preset, images, layers, seeds, accuracy, Frechet distance, processor minutes"

    def line(runs: Sequence[Row], provider: str) -> list[str]:
        own = [row for row in runs if row["provider"] == provider]
        accuracy, fd = ([float(row[column]) for row in own] for column in ("accuracy", "fd"))
        minutes = mean(float(row["processor_seconds"]) for row in own) / 60
        return [
            f"`{own[0]['preset']}`",
            f"{int(own[0]['images']):,}",
            "ours" if provider == "gankernels" else provider,
            str(len(own)),
            f"**{mean(accuracy):.3f}** ({min(accuracy):.3f} to {max(accuracy):.3f})",
            f"**{mean(fd):.1f}** ({min(fd):.1f} to {max(fd):.1f}), {own[0]['fd_features']}",
            f"{minutes:.1f}",
        ]

    blocks = []
    for device, members in groupby(rows, key=lambda row: row["device"]):
        pairs = [runs for runs in _experiments(members) if len(_providers(runs)) > 1]
        if pairs:
            lines = [line(runs, provider) for runs in pairs for provider in ("gankernels", "stock")]
            compared = [row for runs in pairs for row in runs]
            blocks.append(f"{caption(device, compared)}\n\n{table(headers, lines)}")
    return "\n".join(blocks) or "Not measured yet.\n"


def _experiments(rows: Iterable[Row]) -> list[list[Row]]:
    """Rows that differ in seed and layers alone."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[column] for column in _EXPERIMENT), []).append(row)
    return list(found.values())


def _providers(runs: Iterable[Row]) -> set[str]:
    return {row["provider"] for row in runs}


def _op_links(root: Path, page: str) -> dict[str, str]:
    """op -> a link from ``page`` to the op's own page, for those that have one."""
    up = "../" * page.count("/")
    return {path.stem: f"[{path.stem}]({up}docs/ops/{path.name})" for path in (root / "docs" / "ops").glob("*.md")}


def main(argv: Sequence[str] | None = None) -> int:
    """Write the tables, or check them; returns the exit code.

    Raises:
        InputError: figures that cannot be read, or a marker that names no table.
    """
    parser = argparse.ArgumentParser(description="Writes the tables of the README and the docs from the CSVs.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file differs")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent, help="of the repository")
    arguments = parser.parse_args(argv)
    root: Path = arguments.root
    figures = Figures(root)
    if not figures.rows:
        print("nothing to do: no figures in benchmarks/results")
        return 0
    stale = []
    pages = [root / "README.md", *(root / "docs" / name for name in ("benchmarking.md", "models.md"))]
    for path in [*pages, *sorted((root / "docs" / "ops").glob("*.md"))]:
        if not path.exists():
            continue
        page = path.relative_to(root).as_posix()
        before = path.read_text(encoding="utf-8")
        after = figures.fill(before, page)
        if before != after:
            stale.append(page)
            if not arguments.check:
                with replacing(path) as file:
                    file.write(after.encode())
    done = "differs" if arguments.check else "written"
    print("\n".join(f"{page}: {done}" for page in stale) or "nothing to do")
    return 1 if stale and arguments.check else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"tables: error: {error}", file=sys.stderr)
        sys.exit(2)
