"""The HTML page's charts: bars and dots in SVG whose lengths are percentages, so that they shrink without a script."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from gankernels.bench.rows import Row
from gankernels.bench.summary import Group, Summary, images_per_second, is_correct, milliseconds, number


def ms(value: float) -> str:
    """A time in ms with three significant digits, and no exponent."""
    rounded = float(f"{value:.3g}")
    digits = max(0, 2 - math.floor(math.log10(rounded))) if rounded > 0 else 0
    return f"{rounded:.{digits}f}"


def times(value: float) -> str:
    """A speed-up: ``2.85×``."""
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}\N{MULTIPLICATION SIGN}"


def share(value: float) -> str:
    """A share of the floor in per cent."""
    return f"{value:.0%}"


def panel(summary: Summary, colours: Mapping[str, str], name: str) -> str:
    """The bars of one op in one mode and dtype, position by position, on one scale.

    ``colours`` gives the class of each provider; ``name`` is an id that no other panel of the page has.
    """
    scale = _Scale(max([1.0, *(_reach(group) for group in summary.groups)]) * 1.03)
    # Every bar shows the same lines behind it: they are drawn once and used by name.
    lines = "".join(
        f'<line class={"one" if tick == 1 else "grid"} x1="{scale(tick)}" x2="{scale(tick)}" y1="0" y2="20"/>'
        for tick in sorted({*scale.ticks[1:], 1.0})
    )
    labels = "".join(
        f'<text x="{scale(tick)}" y="12" text-anchor={"middle" if tick else "start"}>{tick:g}&times;</text>'
        for tick in scale.ticks
    )
    contests = "".join(_contest(group, scale, colours, f"#{name}") for group in summary.groups)
    return (
        f'<svg class=lines width="0" height="0" aria-hidden=true><defs><g id="{name}">{lines}</g></defs></svg>'
        f"{contests}<div class=contest aria-hidden=true><span></span>"
        f'<svg class=axis width="100%" height="16">{labels}</svg><span></span></div>'
    )


class RatioAxis:
    """A scale on which 2 is as far above 1 as 1/2 is below it, wide enough for ``ratios``, marked at powers of two."""

    def __init__(self, ratios: Sequence[float]) -> None:
        self._low = math.log2(min([0.8, *ratios]))
        self._width = math.log2(max([1.25, *ratios])) - self._low
        step = max(1, math.ceil(self._width / 6))
        powers = range(math.ceil(self._low), math.floor(self._low + self._width) + 1)
        self.marks = [2.0**power for power in powers if power % step == 0]

    def at(self, ratio: float) -> str:
        """The place of a ratio, in per cent of the width."""
        return f"{4 + 92 * (math.log2(ratio) - self._low) / self._width:.2f}%"

    def labels(self) -> str:
        """The marks in writing."""
        texts = (f'<text x="{self.at(mark)}" y="12" text-anchor=middle>{mark:g}&times;</text>' for mark in self.marks)
        return f'<svg class=axis width="100%" height="16" role=img aria-label="speed-up">{"".join(texts)}</svg>'

    def plot(self, summary: Summary) -> str:
        """A dot for each position's speed-up against the best peer, and a line at their geometric mean."""
        spread = summary.against_peer
        if spread is None:
            return ""
        at = self.at
        marks = [
            f'<line class={"one" if mark == 1 else "grid"} x1="{at(mark)}" x2="{at(mark)}" y1="0" y2="24"/>'
            for mark in self.marks
        ]
        marks.append(f'<line class=span x1="{at(spread.low)}" x2="{at(spread.high)}" y1="12" y2="12"/>')
        for group in summary.groups:
            if ratio := group.against_peer():
                tip = escape(f"{group.key.position}, {group.key.shape}: {times(ratio)}")
                marks.append(f'<circle cx="{at(ratio)}" cy="12" r="3.5"><title>{tip}</title></circle>')
        marks.append(f'<line class=mean x1="{at(spread.mean)}" x2="{at(spread.mean)}" y1="3" y2="21"/>')
        text = f"{times(spread.low)} to {times(spread.high)}, geometric mean {times(spread.mean)}"
        return f'<svg class=range width="100%" height="24" role=img aria-label="{text}">{"".join(marks)}</svg>'


class _Scale:
    """From a speed-up to a place on the axis, in per cent."""

    def __init__(self, high: float) -> None:
        self.high = high
        step = next(step for step in (0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, math.inf) if high / step <= 6)
        self.ticks: Sequence[float] = [0] if math.isinf(step) else [i * step for i in range(int(high / step) + 1)]

    def __call__(self, value: float) -> str:
        return f"{100 * max(0.0, value) / self.high:.2f}%"


def _band(row: Row) -> tuple[float, float]:
    median = milliseconds(row) or math.nan
    return number(row["ms_p20"]) or median, number(row["ms_p80"]) or median


def _reach(group: Group) -> float:
    """The greatest speed-up of a group; of its whiskers, as much as is not far beyond."""
    peer = milliseconds(group.peer) if group.peer else None
    timed = [row for row in group.rows if milliseconds(row)]
    if not peer or not timed:
        return 1.0
    fastest = peer / min(milliseconds(row) or math.inf for row in timed)
    return max(fastest, min(1.25 * fastest, peer / min(_band(row)[0] for row in timed)))


def _contest(group: Group, scale: _Scale, colours: Mapping[str, str], lines: str) -> str:
    key = group.key
    providers = "".join(_provider(row, group, scale, colours, lines) for row in group.rows)
    title = f"<h4>{escape(key.position)} <span class=shape>{escape(key.shape)}</span></h4>"
    return f"{title}<div class=contest>{providers}</div>"


def _provider(row: Row, group: Group, scale: _Scale, colours: Mapping[str, str], lines: str) -> str:
    """One provider: its name, its bar, its figures."""
    twice = sum(other["provider"] == row["provider"] for other in group.rows) > 1
    name = f"<span class=who>{escape(row['provider'])}{escape(' ' + row['layout']) if twice else ''}</span>"
    if not is_correct(row):
        return f"{name}<span class='bad verdict'>✕ {escape(row['correct'])}</span>"
    median, peer = milliseconds(row), milliseconds(group.peer) if group.peer else None
    if not median:
        return f"{name}<span class=verdict>no time</span>"
    floor = number(row["floor_share"])
    figures = [
        f"<span><b>{ms(median)}</b> ms</span>",
        f"<span>{times(peer / median)}</span>" if peer else "<span></span>",
    ]
    figures.append(f"<span>{share(floor)}</span>" if floor else "<span></span>")
    low, high = _band(row)
    tip = f"{row['provider']}, {row['impl']}: median {ms(median)} ms, p20 {ms(low)}, p80 {ms(high)}"
    if rate := images_per_second(row):
        tip += f"; {rate:.4g} images/s"
    if floor:
        tip += f"; floor {ms(floor * median)} ms ({row['floor_kind']})"
    drawing = ""
    if peer:
        bar = _bar(peer / median, peer / high, peer / low, scale, colours[row["provider"]])
        drawing = f'{bar[0]}<use href="{lines}"/>{bar[1]}'
    return (
        f'{name}<svg class=bar width="100%" height="20" role=img>'
        f"<title>{escape(tip)}</title>{drawing}</svg><span class=figures>{''.join(figures)}</span>"
    )


def _bar(value: float, low: float, high: float, scale: _Scale, colour: str) -> tuple[str, str]:
    """What lies under the lines of the scale, and what lies over them."""
    at = scale
    whisker = f'<line class=whisker x1="{at(low)}" x2="{at(high)}" y1="10" y2="10"/>'
    caps = (f'<line class=whisker x1="{at(end)}" x2="{at(end)}" y1="7" y2="13"/>' for end in (low, high))
    return f'<rect class={colour} x="0" y="3" width="{at(value)}" height="14" rx="1.5"/>', whisker + "".join(caps)
