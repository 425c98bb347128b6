"""Tables in Markdown from rows: an op's page, summaries, steps, blocks, and every contest that is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

from gankernels.bench.charts import ms
from gankernels.bench.iteration import BEST, EAGER, PEER, Iteration, iterations
from gankernels.bench.rows import Row
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

NOT_MEASURED = "GPU figures have not been measured yet.\n"


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


def iterations_table(rows: Iterable[Row]) -> str:
    """For each device a line for each preset and dtype both of whose steps were measured."""
    headers = (
        "network, batch, steps of D, dtype, eager (images/s), best peers (images/s), ours (images/s), against best, "
        "peak MiB (best peers and ours)"
    )
    blocks = []
    for device, members in groupby(rows, key=lambda row: row["device"]):
        found = iterations(members)
        if found:
            measured = [row for one in found for group in (one.d, one.g) for row in group.rows]
            blocks.append(f"{caption(device, measured)}\n\n{table(headers, map(_iteration_line, found))}")
    return "\n".join(blocks) or "Not measured yet.\n"


def _iteration_line(one: Iteration) -> list[str]:
    eager, peer, best = (f"{rate:.4g}" if (rate := one.images_per_second(of)) else "" for of in (EAGER, PEER, BEST))
    ratio = one.against_peer()
    return [
        *(one.d.key.position, str(one.d.key.batch), str(one.n_dis), one.d.key.dtype),
        *(eager, peer, f"**{best}**"),
        f"{ratio:.2f}x" if ratio else "",
        " and ".join("?" if peak is None else f"{peak:.2f}" for peak in map(one.peak_mib, (PEER, BEST))),
    ]


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
        *(key.op, key.position, str(key.batch), key.mode, key.dtype),
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
            blocks.append(f"{caption(device, own)}\n\n{table(names, lines)}")
    return "\n".join(blocks) or "Not measured yet.\n"


def gpu_tables(rows: Sequence[Row], links: dict[str, str]) -> str:
    """The summary and the steps on GPUs; the sentence that there are none where there are none."""
    if not rows:
        return NOT_MEASURED
    parts = {"Whole steps": steps_table, "Iterations": iterations_table, "Blocks": blocks_table}
    return "\n".join([summary_table(rows, links), *(f"{name}:\n\n{make(rows)}" for name, make in parts.items())])


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


def _by_device(rows: Sequence[Row], headers: str, lines: Callable[[Group], list[list[str]]]) -> str:
    blocks = []
    for device, members in groupby(rows, key=lambda row: row["device"]):
        own = list(members)
        cells = [line for group in groups(own) for line in lines(group)]
        blocks.append(f"{caption(device, own)}\n\n{table(headers, cells)}")
    return "\n".join(blocks) or "Not measured yet.\n"


def caption(device: str, rows: Sequence[Row]) -> str:
    """Where, with what and when: all that the lines below have in common."""
    facts = [device]
    for column in ("driver", "torch", "commit", "date"):
        values = sorted({row[column] for row in rows} - {""})
        if values:
            name = "" if column == "date" else f"{column} "
            facts.append(name + (values[0] if len(values) == 1 else f"{values[0]} to {values[-1]}"))
    return f"{', '.join(facts)}:"


def table(headers: str, lines: Iterable[Sequence[str]]) -> str:
    names = headers.split(", ")
    rows = [names, ["---"] * len(names), *lines]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n" for row in rows)


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
