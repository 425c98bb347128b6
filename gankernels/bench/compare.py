"""``gankernels bench compare A B``: what moved between two measurements, and whether we got slower.

A row has moved if its two values differ by more than the band from p20 to p80 of either measurement. What the value is
depends on the row:

- A peer's is its time in ms.
- Ours is the speed-up against the group's best peer, where both measurements have one. Machines drift: they clock
  down, they are shared, they are not the same machine. The peer ran interleaved with our row, so a drift slows both and
  cancels in their quotient. Its relative band is sqrt(ours^2 + peer^2), since the two vary independently. Where either
  measurement lacks a peer, our row is compared in ms too.

It is a regression if a row of ours moved towards slower by more than the threshold (a part: 0.1 is 10% more time), or
was correct and is now wrong or an error. A warning says where torch differs: the peers are other code then, and our
speed-up can fall because they improved.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from gankernels._arguments import ArgumentParser
from gankernels.bench.rows import Row, read
from gankernels.bench.summary import PEERS, Group, groups, is_correct, is_ours, milliseconds, number, spread
from gankernels.errors import InputError

_CASE = ("op", "position", "shape", "dtype", "mode")
_IDENTITY = (*_CASE, "provider", "layout", "impl")
#: A difference here means that two machines or two builds of the peers are compared.
_ENVIRONMENT = ("device", "driver", "torch", "triton")

Change = dict[str, Any]


class _Value(NamedTuple):
    """What is compared: the more, the slower; ``band`` is its p20 to p80, in the same unit."""

    middle: float
    band: float


def main(argv: list[str]) -> int:
    """Run ``gankernels bench compare ARGV``.

    Returns:
        1 if there is a regression, else 0.

    Raises:
        InputError: a file cannot be read or is not of the bench, or the two have no row in common.
    """
    parser = ArgumentParser("bench compare", "What moved between two measurements; exit code 1 if we got slower.")
    parser.add_argument("a", metavar="A", help="the older measurement: .csv or .json of gankernels bench")
    parser.add_argument("b", metavar="B", help="the newer one")
    parser.add_argument(
        "--threshold", type=float, default=0.1, metavar="PART", help="what we may lose, a part (default: 0.1)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args(argv)
    if not 0 <= arguments.threshold < math.inf:
        raise InputError(f"--threshold: got {arguments.threshold:g}, expected a number that is not negative")
    result = compare(read(arguments.a), read(arguments.b), arguments.threshold)
    print(json.dumps(result, allow_nan=False) if arguments.json else _text(result, arguments.a, arguments.b))
    return 1 if result["regressions"] else 0


def compare(a: Sequence[Row], b: Sequence[Row], threshold: float = 0.1) -> dict[str, Any]:
    """What moved from the rows ``a`` to the rows ``b``; see the module for when a row has moved.

    Returns:
        ``warnings`` (lines), ``drift`` (the peers' times in b over those in a, geometric mean, or None), ``slower`` and
        ``faster`` (rows that moved, the farthest first), ``broken`` and ``mended`` (correct in one of the two only),
        ``disappeared`` and ``appeared``, ``steady`` (how many did not move), ``regressions`` (how many of ``slower``
        and ``broken`` have ``regression`` set).

    Raises:
        InputError: a row occurs twice, or the two have no row in common.
    """
    pairs, disappeared, appeared = _match(a, b)
    if not pairs:
        raise InputError("A and B: got measurements without a row in common, expected the same cases")
    groups_a, groups_b = _groups_by_case(a), _groups_by_case(b)
    result: dict[str, Any] = {"warnings": _warnings(a, b), "drift": _drift(pairs), "threshold": threshold}
    moved: dict[str, list[Change]] = {"slower": [], "faster": [], "broken": [], "mended": []}
    for row_a, row_b in pairs:
        change = _described(row_a, row_b) | {"ms": [milliseconds(row_a), milliseconds(row_b)]}
        if is_correct(row_a) != is_correct(row_b):
            verdicts = [row_a["correct"], row_b["correct"]]
            broken = is_correct(row_a)
            change |= {"correct": verdicts, "regression": broken and is_ours(row_a)}
            moved["broken" if broken else "mended"].append(change)
        elif is_correct(row_a):
            found = _movement(row_a, row_b, groups_a[_case(row_a)], groups_b[_case(row_b)])
            if found is not None:
                change |= found | {"regression": is_ours(row_a) and found["slowdown"] > threshold}
                moved["slower" if found["slowdown"] > 0 else "faster"].append(change)
    for name in ("slower", "faster"):
        moved[name].sort(key=lambda change: -abs(math.log1p(change["slowdown"])))
    result |= moved
    for name, rows in (("disappeared", disappeared), ("appeared", appeared)):
        result[name] = [_described(row, row) for row in rows]
    result["steady"] = len(pairs) - sum(map(len, moved.values()))
    result["regressions"] = sum(change["regression"] for name in ("slower", "broken") for change in moved[name])
    return result


def _movement(row_a: Row, row_b: Row, group_a: Group, group_b: Group) -> Change | None:
    """How far a row moved; None within the noise. ``slowdown`` is the part that B takes more, negative if less."""
    in_ms = not is_ours(row_a) or group_a.peer is None or group_b.peer is None
    change: Change = {"judged_by": "ms" if in_ms else "speed-up"}
    if in_ms:
        a, b = _time(row_a), _time(row_b)
    else:
        a, b = _against(row_a, group_a.peer), _against(row_b, group_b.peer)
        change["speedup"] = [1 / a.middle, 1 / b.middle]
    if abs(b.middle - a.middle) <= max(a.band, b.band):
        return None
    return change | {"slowdown": b.middle / a.middle - 1}


def _time(row: Row) -> _Value:
    middle = milliseconds(row) or math.nan
    low, high = number(row["ms_p20"]), number(row["ms_p80"])
    return _Value(middle, high - low if low is not None and high is not None else 0.0)


def _against(row: Row, peer: Row | None) -> _Value:
    """Our time in units of the peer's: the inverse of the speed-up."""
    ours, theirs = _time(row), _time(peer or row)
    middle = ours.middle / theirs.middle
    return _Value(middle, middle * math.hypot(ours.band / ours.middle, theirs.band / theirs.middle))


def _match(a: Sequence[Row], b: Sequence[Row]) -> tuple[list[tuple[Row, Row]], list[Row], list[Row]]:
    """Pairs of rows, the rows of A alone, and those of B alone.

    Rows pair that agree in all of ``_IDENTITY``. A provider that runs the best of several ways may have changed it
    (compile its mode, eager-best its layout): it still pairs, if it is the only one of its name on both sides.
    """
    all_a, all_b = _indexed("A", a), _indexed("B", b)
    pairs = [(row, all_b[key]) for key, row in all_a.items() if key in all_b]
    rest_a = _by_provider(row for key, row in all_a.items() if key not in all_b)
    rest_b = _by_provider(row for key, row in all_b.items() if key not in all_a)
    disappeared = []
    for provider, rows in rest_a.items():
        if len(rows) == 1 == len(rest_b.get(provider, [])):
            pairs.append((rows[0], rest_b.pop(provider)[0]))
        else:
            disappeared += rows
    return pairs, disappeared, [row for rows in rest_b.values() for row in rows]


def _indexed(name: str, rows: Sequence[Row]) -> dict[tuple[str, ...], Row]:
    found: dict[tuple[str, ...], Row] = {}
    for row in rows:
        key = tuple(row[column] for column in _IDENTITY)
        if key in found:
            raise InputError(f"{name}: got two rows of {_label(row)}, expected one measurement of one device")
        found[key] = row
    return found


def _by_provider(rows: Iterable[Row]) -> dict[tuple[str, ...], list[Row]]:
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault((*_case(row), row["provider"]), []).append(row)
    return found


def _case(row: Row) -> tuple[str, ...]:
    return tuple(row[column] for column in _CASE)


def _groups_by_case(rows: Sequence[Row]) -> dict[tuple[str, ...], Group]:
    return {_case(group.rows[0]): group for group in groups(rows)}


def _warnings(a: Sequence[Row], b: Sequence[Row]) -> list[str]:
    warnings = []
    for column in _ENVIRONMENT:
        of_a, of_b = (", ".join(sorted({row[column] for row in rows} - {""})) or "none" for rows in (a, b))
        if of_a != of_b:
            warnings.append(f"{column} differs: {of_a} in A, {of_b} in B")
    return warnings


def _drift(pairs: Iterable[tuple[Row, Row]]) -> float | None:
    """How many times as long the peers take in B as in A, geometric mean."""
    peers = [(milliseconds(a), milliseconds(b)) for a, b in pairs if a["provider"] in PEERS]
    found = spread(b / a for a, b in peers if a and b)
    return found.mean if found else None


def _described(row_a: Row, row_b: Row) -> Change:
    described: Change = {column: row_b[column] for column in _IDENTITY}
    if row_a["impl"] != row_b["impl"]:
        described["impl"] = f"{row_a['impl']} -> {row_b['impl']}"
    return described


def _label(row: Row | Change) -> str:
    way = " ".join(text for text in (row["impl"], row["layout"]) if text)
    return f"{row['op']}, {row['position']}, {row['shape']}, {row['dtype']}, {row['mode']}, {row['provider']} ({way})"


def _text(result: dict[str, Any], a: str, b: str) -> str:
    lines = [f"A  {a}", f"B  {b}", *(f"warning: {warning}" for warning in result["warnings"])]
    if result["drift"]:
        lines.append(f"the peers take {result['drift']:.2f} times as long in B as in A (geometric mean)")
    for title in ("slower", "faster", "broken", "mended", "disappeared", "appeared"):
        if result[title]:
            lines += ["", f"{title} ({len(result[title])})", *(f"  {_line(change)}" for change in result[title])]
    end = f"{result['steady']} rows did not move beyond the noise; "
    end += f"{result['regressions']} regressions over {result['threshold']:.0%}"
    return "\n".join([*lines, "", end])


def _line(change: Change) -> str:
    parts = [_label(change)]
    if "correct" in change:
        parts.append(" -> ".join(change["correct"]))
    elif "slowdown" in change:
        ms_a, ms_b = change["ms"]
        parts.append(f"{ms_a:.4g} -> {ms_b:.4g} ms ({ms_b / ms_a - 1:+.1%})")
        if "speedup" in change:
            old, new = change["speedup"]
            parts.append(f"{old:.2f} -> {new:.2f} times the best peer's speed ({new / old - 1:+.1%})")
    if change.get("regression"):
        parts.append("REGRESSION")
    return ": ".join([parts[0], "; ".join(parts[1:])]) if parts[1:] else parts[0]
