"""Writes the tables of the README and the docs from the committed CSVs.

    python benchmarks/tables.py [--check]

A table stands between ``<!-- table: NAME -->`` and ``<!-- end of table -->``; NAME is a key of :data:`TABLES`. With
``--check`` nothing is written, and the exit code is 1 if a file differs from what its figures say.
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Callable, Iterable
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = ("README.md", "docs/ops/conditional_batch_norm.md")
PEERS = ("eager", "eager-best", "compile")
_BLOCK = re.compile(r"(<!-- table: (.+?) -->\n).*?(<!-- end of table -->)", re.DOTALL)

Row = dict[str, str]


def read(op: str) -> list[Row]:
    """All rows of an op, of every device; each device's own memory setting first."""
    rows: list[Row] = []
    for path in sorted(RESULTS.glob(f"*/{op}*.csv"), key=lambda path: (path.parent, len(path.name))):
        with open(path, newline="") as file:
            rows += csv.DictReader(file)
    return rows


def op_table(rows: Iterable[Row]) -> str:
    """One line for each measured kernel of ours, with the fastest correct peer beside it."""
    lines = [
        "| device | memory | shape | dtype | best peer, ms | ours, ms | against best | against eager | of the floor |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for _, group in groupby(rows, key=lambda row: [row[key] for key in ("device", "mode", "position", "dtype")]):
        members = list(group)
        peer = min((row for row in members if row["provider"] in PEERS and row["ms"]), key=lambda row: float(row["ms"]))
        for row in members:
            if row["provider"] in PEERS:
                continue
            ms = f"{float(row['ms']):.2f}" if row["ms"] else row["correct"]
            cells = [
                row["device"],
                "kept" if row["mode"].endswith("kept memory") else "default",
                f"{row['position']}: {row['shape']}",
                row["dtype"],
                f"{float(peer['ms']):.2f} ({peer['provider']})",
                f"**{ms}**",
                f"{row['speedup_vs_best_peer']}x",
                f"{row['speedup_vs_eager']}x",
                f"{float(row['floor_share'] or 0):.0%}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _short(rows: Iterable[Row]) -> Iterable[Row]:
    return (row for row in rows if row["shape"] == "64x192x32x32")


TABLES: dict[str, Callable[[], str]] = {
    "conditional_batch_norm": lambda: op_table(read("conditional_batch_norm")),
    "conditional_batch_norm, one shape": lambda: op_table(_short(read("conditional_batch_norm"))),
}


def fill(text: str) -> str:
    """``text`` with every table written anew."""
    return _BLOCK.sub(lambda match: match[1] + TABLES[match[2]]() + match[3], text)


def main() -> int:
    stale = []
    for page in PAGES:
        path = ROOT / page
        before = path.read_text()
        after = fill(before)
        if before != after:
            stale.append(page)
            if "--check" not in sys.argv:
                path.write_text(after)
    print(
        "\n".join(f"{page}: {'differs' if '--check' in sys.argv else 'written'}" for page in stale) or "nothing to do"
    )
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
