"""Writes the tables of the README and the docs from the committed CSVs.

    python benchmarks/tables.py [--check] [--root FOLDER]

A table stands between ``<!-- table: NAME -->`` and ``<!-- end of table -->``. With ``--check`` nothing is written, and
the exit code is 1 if a file differs from what its figures say. NAME is one of

- an op, by the name of its page ``docs/ops/<op>.md``: all its rows that are ours, on every device;
- ``summary``: a line for each op, over its positions, forward and backward, on CPUs; ``gpu``: the same and the steps,
  on GPUs, or a sentence where none has been measured;
- ``steps``: whole training steps on CPUs; ``blocks``: forward and backward of single blocks there;
- ``losses``: every contest that the best peer wins, on every device;
- ``quality``: what each preset learnt; ``parity``: the same on our layers and on stock ones, over seeds.

The figures are those of ``benchmarks/results/<device>/``: ``ops.csv``, ``steps.csv``, and ``*-system-memory.csv`` of
the same form, as ``gankernels bench --csv`` writes them; and ``benchmarks/results/quality/<device>.csv``, as
``quality.py`` writes it.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path
from statistics import mean

from gankernels._files import replacing
from gankernels.bench.charts import ms
from gankernels.bench.rows import Row, read_csv
from gankernels.bench.summary import (
    Group,
    Spread,
    groups,
    images_per_second,
    is_correct,
    is_ours,
    milliseconds,
    number,
    summarise,
)
from gankernels.errors import InputError

NOT_MEASURED = "GPU figures have not been measured yet.\n"
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
        quality = [row for path in sorted((results / "quality").glob("*.csv")) for row in _quality_rows(path)]
        on_gpu = [row for row in self.rows if row["driver"]]
        on_cpu = [row for row in self.rows if not row["driver"]]
        self.tables: dict[str, Callable[[str], str]] = {
            "summary": lambda page: summary_table(on_cpu, _op_links(root, page)),
            "steps": lambda page: steps_table(on_cpu),
            "blocks": lambda page: blocks_table(on_cpu),
            "gpu": lambda page: gpu_tables(on_gpu, _op_links(root, page)),
            "losses": lambda page: losses_table(self.rows),
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

        def table(match: re.Match[str]) -> str:
            if match[2] not in self.tables:
                raise InputError(f"{page}: got table {match[2]!r}, expected one of {', '.join(sorted(self.tables))}")
            return match[1] + self.tables[match[2]](page) + match[3]

        return _BLOCK.sub(table, text)

    def _of_op(self, op: str) -> Callable[[str], str]:
        return lambda page: op_table(self.rows, op)


def op_table(rows: Iterable[Row], op: str) -> str:
    """For each device a line for each row of ours, with the best peer beside it."""
    mine = [row for row in rows if row["op"] == op]
    headers = "position, shape, mode, dtype, best peer (ms), ours (ms), against best, against eager, of the floor"
    saved = any(row["saved_mib"] for row in mine)

    def lines(group: Group) -> list[list[str]]:
        ours = [row for row in group.rows if is_ours(row)]
        return [[*_op_line(row, group), *([_against_eager(row, group, "saved_mib")] if saved else [])] for row in ours]

    return _by_device(mine, headers + (", saved for backward: ours / eager (MiB)" if saved else ""), lines)


def _op_line(row: Row, group: Group) -> list[str]:
    key = group.key
    ours = f"{_ms(row)} ({row['impl']})" if is_correct(row) else row["correct"]
    peer = f"{_ms(group.peer)} ({group.peer['provider']})" if group.peer else "none is correct"
    ratios = [f"{row[name]}x" if row[name] else "" for name in ("speedup_vs_best_peer", "speedup_vs_eager")]
    return [key.position, key.shape, key.mode, key.dtype, peer, f"**{ours}**", *ratios, _share(row["floor_share"])]


def _against_eager(row: Row, group: Group, column: str) -> str:
    """MiB that a call takes, or keeps for its backward: ours, eager PyTorch's in the same dtype, and their ratio."""
    eager = next((r for r in group.rows if r["provider"] == "eager-best" and r[column]), group.eager)
    ours, theirs = number(row[column]), number(eager[column]) if eager else None
    if ours is None or not theirs:
        return ""
    return f"{ours:.4g} / {theirs:.4g} ({ours / theirs:.2f}x)"


def steps_table(rows: Iterable[Row]) -> str:
    """For each device a line for each kind of step, network and dtype, in images per second."""
    steps = [row for row in rows if row["mode"].startswith("step") and not _is_block(row)]
    headers = (
        "step, network, batch, mode, dtype, eager (images/s), best peer (images/s), ours (images/s), against best, "
    )
    return _by_device(steps, headers + "peak MiB (best peer and ours)", lambda group: [_step_line(group)])


def blocks_table(rows: Iterable[Row]) -> str:
    """For each device a line for each block, with the memory that a call takes beyond its inputs."""

    def line(group: Group) -> list[list[str]]:
        ours = [row for row in group.rows if is_ours(row)]
        return [[group.key.op, *_op_line(row, group), _against_eager(row, group, "peak_mib")] for row in ours]

    headers = (
        "block, position, shape, mode, dtype, best peer (ms), ours (ms), against best, against eager, of the floor"
    )
    return _by_device([row for row in rows if _is_block(row)], f"{headers}, peak: ours / eager (MiB)", line)


def _is_block(row: Row) -> bool:
    return row["op"].endswith("_block")


def _step_line(group: Group) -> list[str]:
    key, peer, ours = group.key, group.peer, group.best
    failed = next((row["correct"] for row in group.rows if is_ours(row)), "not measured")
    ratio = group.against_peer()
    return [
        *(key.op, key.position, key.shape.split("x")[0], key.mode, key.dtype),
        _rate(group.eager),
        f"{_rate(peer)} ({peer['provider']})" if peer else "none is correct",
        f"**{_rate(ours) if ours else failed}**",
        f"{ratio:.2f}x" if ratio else "",
        " and ".join(row["peak_mib"] or "?" for row in (peer, ours) if row),
    ]


def summary_table(rows: Iterable[Row], links: dict[str, str]) -> str:
    """For each device a line for each op and dtype, forward and backward: geometric means and ranges over positions."""
    names = "op, dtype, shapes, against the best peer, against eager, of the floor, slower than the best peer"
    blocks = []
    for device, members in groupby(rows, key=lambda row: row["device"]):
        own = list(members)
        lines = [
            [
                links.get(found.op, found.op),
                found.dtype,
                f"{len(found.groups)}" + (f", {len(found.failed)} of our rows wrong or failed" if found.failed else ""),
                _spread(found.against_peer),
                _spread(found.against_eager),
                f"{found.floor_share.mean:.0%}" if found.floor_share else "",
                f"at {len(found.lost)}" if found.lost else "nowhere",
            ]
            for found in summarise(own)
            if found.mode == "forward+backward"
        ]
        if lines:
            blocks.append(f"{_caption(device, own)}\n\n{_table(names, lines)}")
    return "\n".join(blocks) or "Not measured yet.\n"


def gpu_tables(rows: Sequence[Row], links: dict[str, str]) -> str:
    """The summary and the steps on GPUs; the sentence that there are none where there are none."""
    if not rows:
        return NOT_MEASURED
    return f"{summary_table(rows, links)}\nWhole steps:\n\n{steps_table(rows)}\nBlocks:\n\n{blocks_table(rows)}"


def losses_table(rows: Sequence[Row]) -> str:
    """For each device a line for each contest in which our fastest implementation is slower than the best peer."""
    headers = "op, position, shape, mode, dtype, best peer (ms), ours (ms), against best"

    def line(group: Group) -> list[list[str]]:
        ratio, key = group.against_peer(), group.key
        if ratio is None or ratio >= 1 or group.best is None or group.peer is None:
            return []
        peer = f"{_ms(group.peer)} ({group.peer['provider']})"
        ours = f"{_ms(group.best)} ({group.best['impl']})"
        return [[key.op, key.position, key.shape, key.mode, key.dtype, peer, ours, f"{ratio:.2f}x"]]

    if not rows:
        return "Not measured yet.\n"
    contests = [groups(own) for _, own in groupby(rows, key=lambda row: row["device"])]
    lost = [row for own in contests for group in own if line(group) for row in group.rows]
    return _by_device(lost, headers, line) if lost else "Nowhere, of what was measured.\n"


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
            blocks.append(f"{_caption(device, alone)}\n\n{_table(headers, map(line, alone))}")
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
            blocks.append(f"{_caption(device, compared)}\n\n{_table(headers, lines)}")
    return "\n".join(blocks) or "Not measured yet.\n"


def _experiments(rows: Iterable[Row]) -> list[list[Row]]:
    """Rows that differ in seed and layers alone."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[column] for column in _EXPERIMENT), []).append(row)
    return list(found.values())


def _providers(runs: Iterable[Row]) -> set[str]:
    return {row["provider"] for row in runs}


def _quality_rows(path: Path) -> list[Row]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _by_device(rows: Sequence[Row], headers: str, lines: Callable[[Group], list[list[str]]]) -> str:
    blocks = []
    for device, members in groupby(rows, key=lambda row: row["device"]):
        own = list(members)
        cells = [line for group in groups(own) for line in lines(group)]
        blocks.append(f"{_caption(device, own)}\n\n{_table(headers, cells)}")
    return "\n".join(blocks) or "Not measured yet.\n"


def _caption(device: str, rows: Sequence[Row]) -> str:
    """Where, with what and when: all that the lines below have in common."""
    facts = [device]
    for column in ("driver", "torch", "commit", "date"):
        values = sorted({row[column] for row in rows} - {""})
        if values:
            name = "" if column == "date" else f"{column} "
            facts.append(name + (values[0] if len(values) == 1 else f"{values[0]} to {values[-1]}"))
    return f"{', '.join(facts)}:"


def _table(headers: str, lines: Iterable[Sequence[str]]) -> str:
    names = headers.split(", ")
    rows = [names, ["---"] * len(names), *lines]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n" for row in rows)


def _op_links(root: Path, page: str) -> dict[str, str]:
    """op -> a link from ``page`` to the op's own page, for those that have one."""
    up = "../" * page.count("/")
    return {path.stem: f"[{path.stem}]({up}docs/ops/{path.name})" for path in (root / "docs" / "ops").glob("*.md")}


def _ms(row: Row) -> str:
    median = milliseconds(row)
    return ms(median) if median else ""


def _rate(row: Row | None) -> str:
    rate = images_per_second(row) if row else None
    return f"{rate:.4g}" if rate else ""


def _share(text: str) -> str:
    value = number(text)
    return "" if value is None else f"{value:.0%}"


def _spread(spread: Spread | None) -> str:
    return f"**{spread.mean:.2f}x** ({spread.low:.2f} to {spread.high:.2f})" if spread else ""


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
