"""Rows on a terminal: a rich table where it fits, plain columns of text elsewhere. Nothing is ever cut off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO, NamedTuple

from gankernels.bench.rows import Row
from gankernels.bench.summary import Group, groups, images_per_second, milliseconds, number

#: What is the same for all rows of a group comes first.
_GROUP_COLUMNS = ("position", "shape", "dtype", "mode", "floor")
_COLUMNS = ("provider", "ms", "p20", "p80", "vs best peer", "vs eager", "of floor", "peak MiB", "images/s", "ran as")
_NUMBERS = _COLUMNS[1:-1]
_LAST_MIN_WIDTH = 12
_UNBOUNDED = 10_000


class _Line(NamedTuple):
    cells: dict[str, str]
    best: bool
    last: bool


def show(rows: Sequence[Row], out: IO[str]) -> None:
    """Print ``rows`` to ``out``, a table for each op: the fastest correct provider of each group in bold.

    Where ``out`` is no terminal, is too narrow for the table, or rich is not installed, the same as plain text.
    """
    by_op: dict[str, list[Row]] = {}
    for row in rows:
        by_op.setdefault(row["op"], []).append(row)
    for op, rows_of_op in by_op.items():
        lines = [line for group in groups(rows_of_op) for line in _lines(group)]
        columns = [name for name in _GROUP_COLUMNS + _COLUMNS if any(line.cells[name] for line in lines)]
        if not (out.isatty() and _show_rich(op, columns, lines, out)):
            _show_plain(op, columns, lines, out)


def _lines(group: Group) -> list[_Line]:
    times = [time for time in map(milliseconds, group.rows) if time is not None]
    lines = []
    for index, row in enumerate(group.rows):
        time = milliseconds(row)
        rate = images_per_second(row)
        share = number(row["floor_share"])
        cells = {
            **{name: row[name] for name in ("position", "shape", "dtype", "mode", "provider")},
            "floor": row["floor_kind"],
            "ms": _figure(row["ms"]),
            "p20": _figure(row["ms_p20"]),
            "p80": _figure(row["ms_p80"]),
            "vs best peer": row["speedup_vs_best_peer"],
            "vs eager": row["speedup_vs_eager"],
            "of floor": "" if share is None else f"{share:.0%}",
            "peak MiB": _figure(row["peak_mib"]),
            "images/s": "" if rate is None else f"{rate:,.0f}",
            "ran as": row["impl"] if row["correct"] == "yes" else row["correct"],
        }
        lines.append(_Line(cells, time is not None and time == min(times), index == len(group.rows) - 1))
    return lines


def _figure(text: str) -> str:
    """A number as it is read: four digits, and no exponent."""
    value = number(text)
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 1000 else f"{value:#.4g}".rstrip(".")


def _show_rich(op: str, columns: Sequence[str], lines: Sequence[_Line], out: IO[str]) -> bool:
    """Whether rich is here and the table fits the terminal; it is printed if so."""
    try:
        from rich import box
        from rich.console import Console
        from rich.measure import Measurement
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return False
    console = Console(file=out, highlight=False)
    table = Table(title=op, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        # The last one may hold an error, and folds.
        last = name == columns[-1]
        table.add_column(
            name,
            justify="right" if name in _NUMBERS else "left",
            no_wrap=not last,
            overflow="fold",
            min_width=_LAST_MIN_WIDTH if last else None,
        )
    before: dict[str, str] = {}
    for line in lines:
        shown = {name: "" if name in _GROUP_COLUMNS and before.get(name) else line.cells[name] for name in columns}
        before = {} if line.last else line.cells
        cells = [Text(shown[name], "bold" if line.best and name not in _GROUP_COLUMNS else "") for name in columns]
        table.add_row(*cells, end_section=line.last)
    if Measurement.get(console, console.options.update(max_width=_UNBOUNDED), table).minimum > console.width:
        return False
    console.print(table)
    return True


def _show_plain(op: str, columns: Sequence[str], lines: Sequence[_Line], out: IO[str]) -> None:
    table = [list(columns), *([line.cells[name] for name in columns] for line in lines)]
    # A long error in the last column pads nobody.
    widths = [max(map(len, cells)) for cells in list(zip(*table, strict=True))[:-1]] + [0]
    print(op, file=out)
    for values in table:
        cells = [
            value.rjust(width) if name in _NUMBERS else value.ljust(width)
            for name, value, width in zip(columns, values, widths, strict=True)
        ]
        print("  ".join(["", *cells]).rstrip(), file=out)
    print(file=out)
