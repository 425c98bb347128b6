"""One HTML page of a benchmark: who is faster where, by how much, and how far everybody is from the floor.

The page is one file that asks the network for nothing: its style and its script (``page.css`` and ``page.js`` beside
this module) are inside it, and a content security policy forbids everything else. Without JavaScript all rows and
charts are there; with it the tables sort and the filters filter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from gankernels._files import replacing
from gankernels.bench import charts
from gankernels.bench.iteration import iterations
from gankernels.bench.page_tables import (
    PROVENANCE,
    all_rows,
    anchor,
    distinct,
    filterable,
    scoreboard,
    training_iterations,
)
from gankernels.bench.providers import PEERS
from gankernels.bench.rows import Row
from gankernels.bench.summary import Group, Summary, groups, is_correct, summarise
from gankernels.errors import InputError

_FOLDER = Path(__file__).parent
_LEGEND = {
    "eager": "PyTorch as it comes: fp32, contiguous",
    "eager-best": "PyTorch in the row's dtype, in its better layout",
    "compile": "torch.compile in its best mode",
}
_METHOD = """Every provider is checked against an fp64 reference before it is timed; one that fails is "wrong" and gets
no time. All that compete run interleaved in one process on the same inputs, which rotate; on a GPU each is a CUDA
graph. A time is the median of the repeats; its whisker goes from the 20th to the 80th percentile. The <b>best peer</b>
is the fastest correct of eager, eager-best and compile. The <b>floor</b> is the least time in which this machine could
do the work: the bytes, the operations and the launches that no implementation can do without, at the ceilings above,
which were measured in the same run. A share of 100% is as fast as it gets."""


def write(
    path: Path | str,
    rows: Sequence[Row],
    ceilings: Mapping[str, Any] | None = None,
    title: str = "gankernels bench",
) -> None:
    """Write ``rows`` as one self-contained HTML page; the file is replaced at once, whole.

    Args:
        path: of the page.
        rows: as :func:`gankernels.bench.run` returns them; see :mod:`gankernels.bench.rows` for the columns.
        ceilings: what the machine was measured to do, from :meth:`gankernels.bench.ceilings.Ceilings.as_dict`.
        title: of the page.

    Raises:
        InputError: the folder of ``path`` is not there or cannot be written to.
    """
    path = Path(path)
    text = render(rows, ceilings, title)
    try:
        with replacing(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise InputError(f"html: got {path}, expected a file that can be written ({error.strerror})") from None


def render(rows: Sequence[Row], ceilings: Mapping[str, Any] | None, title: str) -> str:
    """The page's text; see :func:`write`."""
    summaries = summarise(rows)
    style, script = ((_FOLDER / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
    colours = _colours(rows)
    return f"""<!doctype html>
<html lang=en>
<head>
<meta charset=utf-8>
<meta name=viewport content="width=device-width, initial-scale=1">
<meta name=color-scheme content="light dark">
<meta http-equiv=Content-Security-Policy content="{policy}">
<link rel=icon href="data:,">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
{_provenance(rows)}
{_ceilings(ceilings)}
</header>
<main>
{_filters(rows)}
<section id=summary>
<h2>Our best against the best peer</h2>
<p>{_verdict(groups(rows), rows)}</p>
{scoreboard(summaries)}
</section>
{_training(rows)}
<section id=method>
<h2>Method</h2>
<p>{_METHOD}</p>
</section>
<section id=charts>
<h2>By op and position</h2>
<p>Bars are speed against the best peer: longer is faster, and the line at 1&times; is the best peer. Right of each bar
stand the median time, the speed-up against the best peer, and the share of the floor.</p>
{_legend(colours)}
{_charts(summaries, colours)}
</section>
<section id=rows>
<h2>All rows <small id=count></small></h2>
<p>A click on a header sorts, another reverses.</p>
{all_rows(rows)}
</section>
</main>
<script>
{script}</script>
</body>
</html>
"""


def _colours(rows: Iterable[Row]) -> dict[str, str]:
    """provider -> the class of its bars: the peers' always the same, ours numbered as they come."""
    providers = distinct(rows, "provider")
    others = [name for name in providers if name not in PEERS]
    named = {name: f"peer-{index}" for index, name in enumerate(PEERS) if name in providers}
    return named | {name: f"ours-{index % 4}" for index, name in enumerate(others)}


def _provenance(rows: Sequence[Row]) -> str:
    device = " · ".join(distinct(rows, "device")) or "no rows"
    facts = [(name, ", ".join(distinct(rows, name))) for name in PROVENANCE[1:]]
    items = "".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in facts if value)
    return f"<p class=device>{escape(device)}</p>\n<dl class=facts>{items}</dl>"


def _ceilings(ceilings: Mapping[str, Any] | None) -> str:
    """What the machine was measured to do, as :meth:`gankernels.bench.ceilings.Ceilings.as_dict` gives it."""
    if not ceilings:
        return ""
    copies = [f"{rate / 1e9:.3g} GB/s with {size / 2**20:g} MiB" for size, rate in ceilings["copy"]]
    fastest = max(rate for _, rate in ceilings["copy"])
    facts = [
        ("copy", f"{ceilings['copy'][-1][1] / 1e9:.3g} GB/s", "; ".join(copies)),
        ("copy in cache", f"{fastest / 1e9:.3g} GB/s", "; ".join(copies)),
        *((f"GEMM {dtype}", _rate(rate), "a large matrix product") for dtype, rate in ceilings["gemm"].items()),
        ("launch", f"{ceilings['launch'] * 1e6:.3g} us", "of the smallest kernel"),
    ]
    items = "".join(
        f'<div title="{escape(tip)}"><dt>{escape(name)}</dt><dd>{value}</dd></div>' for name, value, tip in facts
    )
    return f"<dl class='facts ceilings' aria-label='measured ceilings'>{items}</dl>"


def _rate(rate: float) -> str:
    return f"{rate / 1e12:.3g} TFLOP/s" if rate >= 1e12 else f"{rate / 1e9:.3g} GFLOP/s"


def _filters(rows: Sequence[Row]) -> str:
    def choice(name: str, options: Iterable[tuple[str, str]]) -> str:
        shown = "".join(f'<option value="{escape(value)}">{escape(text)}</option>' for value, text in options)
        return f"<label>{name}<select name={name}><option value=''>all</option>{shown}</select></label>"

    by_column = "".join(
        choice(name, ((value, value) for value in distinct(rows, name))) for name in ("op", "dtype", "mode")
    )
    kinds = [("ours", "ours"), ("lost", "ours, slower than the best peer"), ("bad", "wrong or error")]
    search = "<label>search<input type=search name=search placeholder='position, shape, ...'></label>"
    return f"<form id=filters hidden>{by_column}{choice('rows', kinds)}{search}</form>"


def _verdict(contests: Sequence[Group], rows: Sequence[Row]) -> str:
    """One sentence: in how many contests we are faster, slower, or have no figure."""
    ratios = [ratio for group in contests if (ratio := group.against_peer())]
    lost = sum(ratio < 1 for ratio in ratios)
    failed = [row["correct"] for row in rows if not is_correct(row)]
    wrong = sum(verdict.startswith("wrong") for verdict in failed)
    text = (
        f"Over {len(ratios)} measured combinations of op, position, dtype and mode we are faster than the best peer in "
        f"<b>{len(ratios) - lost}</b> and slower in <b>{lost}</b>."
    )
    if failed:
        text += f" <span class=bad>✕ {wrong} of {len(rows)} rows are wrong, {len(failed) - wrong} did not run.</span>"
    return text


def _training(rows: Sequence[Row]) -> str:
    """The iterations whose steps were measured, in a section; nothing where there are none."""
    found = iterations(rows)
    if not found:
        return ""
    return f"""<section id=training>
<h2>Training iterations</h2>
<p>In real images per second, by each preset's recipe: its steps of the discriminator and one of the generator, without
the optimizers. Each of the two steps has a best peer of its own.</p>
{training_iterations(found)}
</section>"""


def _legend(colours: Mapping[str, str]) -> str:
    items = "".join(
        f'<li><svg width="14" height="14" aria-hidden=true><rect class={colour} width="14" height="14" rx="2"/></svg>'
        f"<span><b>{escape(name)}</b> {escape(_LEGEND.get(name, 'ours'))}</span></li>"
        for name, colour in colours.items()
    )
    return f"<ul class=legend>{items}</ul>"


def _charts(summaries: Sequence[Summary], colours: Mapping[str, str]) -> str:
    sections = []
    for op in dict.fromkeys(summary.op for summary in summaries):
        panels = "".join(
            f"<div class=panel {filterable(op, summary.dtype, summary.mode)}>"
            f"<h3>{escape(summary.mode)} <span>{escape(summary.dtype)}</span></h3>"
            f"{charts.panel(summary, colours, f'scale-{index}')}</div>"
            for index, summary in enumerate(summaries)
            if summary.op == op
        )
        name = escape(op)
        sections.append(
            f'<details class=op open id="{anchor(op)}"><summary>{name}</summary><div>{panels}</div></details>'
        )
    return "\n".join(sections)
