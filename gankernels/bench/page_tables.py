"""The HTML page's tables: ops, training iterations, and every row. Their headers sort on a click (``page.js``)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from html import escape

from gankernels.bench import charts
from gankernels.bench.iteration import BEST, EAGER, PEER, Iteration
from gankernels.bench.rows import Row
from gankernels.bench.summary import Summary, groups, images_per_second, is_correct, is_ours, number

#: Of the measurement, not of a row: said once at the top, and a column only where rows differ.
PROVENANCE = ("device", "driver", "torch", "triton", "gankernels", "commit", "date")
#: How a number is shown; None is text, which is shown as it is.
Form = Callable[[float], str] | None
#: column -> its header and form. "images/s" is no column of a file: it follows from a step's shape and time.
_COLUMNS: dict[str, tuple[str, Form]] = {
    "op": ("op", None),
    "position": ("position", None),
    "shape": ("shape", None),
    "dtype": ("dtype", None),
    "mode": ("mode", None),
    "provider": ("provider", None),
    "ms": ("ms", charts.ms),
    "speedup_vs_best_peer": ("vs best peer", charts.times),
    "speedup_vs_eager": ("vs eager", charts.times),
    "floor_share": ("of floor", charts.share),
    "correct": ("correct", None),
    "ms_p20": ("p20", charts.ms),
    "ms_p80": ("p80", charts.ms),
    "images/s": ("images/s", "{:,.0f}".format),
    "peak_mib": ("peak MiB", charts.ms),
    "saved_mib": ("saved MiB", charts.ms),
    "floor_kind": ("floor", None),
    "impl": ("ran as", None),
    "layout": ("layout", None),
}


def scoreboard(summaries: Sequence[Summary]) -> str:
    """A line for each op, mode and dtype: our best implementation against the best peer, over all positions."""
    spreads = [spread for summary in summaries if (spread := summary.against_peer)]
    axis = charts.RatioAxis([ratio for spread in spreads for ratio in (spread.low, spread.high)])
    names = ("least", "most", "vs eager", "of floor", "shapes", "slower at")
    headers = [_header("op"), _header("vs best peer", True), f"<th scope=col>{axis.labels()}</th>"]
    headers += [_header(name, True) for name in names]
    body = []
    for summary in summaries:
        peer, eager, floor = summary.against_peer, summary.against_eager, summary.floor_share
        failed = f" <span class=bad>✕ {len(summary.failed)} of ours failed</span>" if summary.failed else ""
        cells = [
            f'<th scope=row><a href="#{anchor(summary.op)}">{escape(summary.op)}</a>{failed}'
            f"<small>{escape(summary.mode)} · {escape(summary.dtype)}</small></th>",
            _number(peer and peer.mean, charts.times, "strong"),
            f"<td class=plot>{axis.plot(summary)}</td>",
            _number(peer and peer.low, charts.times),
            _number(peer and peer.high, charts.times),
            _number(eager and eager.mean, charts.times),
            _number(floor and floor.mean, charts.share),
            _number(len(summary.groups), str),
            _number(len(summary.lost), str),
        ]
        body.append(f"<tr {filterable(summary.op, summary.dtype, summary.mode)}>{''.join(cells)}</tr>")
    note = "Geometric means over an op's positions of our fastest correct implementation; a dot is one position."
    return _table("scoreboard", headers, body) + f"<p class=note>{note}</p>"


def training_iterations(found: Sequence[Iteration]) -> str:
    """A line for each iteration: real pictures a second, and the larger peak of its two steps."""
    names = ("vs best peers", "ours", "best peers", "eager", "steps of D", "batch", "peak MiB", "best peers' peak MiB")
    body = []
    for one in found:
        key = one.d.key
        cells = [
            f"<th scope=row>{escape(key.position)}<small>{escape(key.dtype)}</small></th>",
            _number(one.against_peer(), charts.times, "strong"),
            *(_number(one.images_per_second(of), _per_second) for of in (BEST, PEER, EAGER)),
            _number(one.n_dis, str),
            _number(key.batch, str),
            *(_number(one.peak_mib(of), charts.ms) for of in (BEST, PEER)),
        ]
        body.append(f"<tr {filterable(key.op, key.dtype, key.mode)}>{''.join(cells)}</tr>")
    return _table("iterations", [_header("preset"), *(_header(name, True) for name in names)], body)


def all_rows(rows: Sequence[Row]) -> str:
    """Every row as it stands in the files, but for columns that are empty, or the same everywhere at the top."""
    steps = any(map(images_per_second, rows))
    columns = {
        name: column for name, column in _COLUMNS.items() if (name == "images/s" and steps) or distinct(rows, name)
    }
    columns |= {name: (name, None) for name in PROVENANCE if len(distinct(rows, name)) > 1}
    best_peers = {id(group.peer) for group in groups(rows)}
    body = []
    for row in rows:
        kinds = ["ours"] if is_ours(row) else ["peer"] if id(row) in best_peers else []
        if is_ours(row) and (number(row["speedup_vs_best_peer"]) or 1) < 1:
            kinds.append("lost")
        if not is_correct(row):
            kinds.append("bad")
        cells = "".join(_cell(row, name, form) for name, (_, form) in columns.items())
        body.append(f'<tr class="{" ".join(kinds)}" {filterable(row["op"], row["dtype"], row["mode"])}>{cells}</tr>')
    headers = [_header(text, form is not None) for text, form in columns.values()]
    return _table("all", headers, body)


def filterable(op: str, dtype: str, mode: str) -> str:
    """The attributes by which the page's filters find an element."""
    return f'data-op="{escape(op)}" data-dtype="{escape(dtype)}" data-mode="{escape(mode)}"'


def distinct(rows: Iterable[Row], column: str) -> list[str]:
    """The values of a column, in order, without the empty one."""
    return [value for value in dict.fromkeys(row.get(column, "") for row in rows) if value]


def anchor(op: str) -> str:
    """The id of an op's charts."""
    return "op-" + "".join(letter if letter.isalnum() else "-" for letter in op)


def _table(name: str, headers: Sequence[str], body: Sequence[str]) -> str:
    rows = "\n".join(body)
    return (
        f"<div class=scroll tabindex=0 role=region aria-label={name}><table id={name}>"
        f"<thead><tr>{''.join(headers)}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>"
    )


def _header(text: str, numbers: bool = False) -> str:
    """A header that sorts its column, as numbers or as text."""
    kind = "number" if numbers else "text"
    return f"<th scope=col class={kind} aria-sort=none><button type=button>{escape(text)}</button></th>"


def _per_second(rate: float) -> str:
    """With four significant digits and no exponent."""
    return f"{rate:,.0f}" if rate >= 1000 else f"{rate:.4g}"


def _cell(row: Row, name: str, form: Form) -> str:
    if name == "correct" and not is_correct(row):
        return f"<td class=bad>✕ {escape(row[name])}</td>"
    if form:
        value = images_per_second(row) if name == "images/s" else number(row.get(name))
        return _number(value, form, f"c-{name}")
    return f'<td class="c-{name}">{escape(row.get(name, ""))}</td>'


def _number(value: float | None, form: Callable[[float], str], kind: str = "") -> str:
    """A cell that sorts by the number itself, not by what is shown of it."""
    text, exact = ("", "") if value is None else (form(value), repr(value))
    return f'<td class="number {kind}" data-value="{exact}">{text}</td>'
