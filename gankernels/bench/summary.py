"""What rows say together: who competes with whom, who is best, and what an op's figures are in one line.

The HTML page, ``gankernels bench compare`` and the tables of the docs all take their aggregates from here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gankernels.bench.declaration import STEP
from gankernels.bench.providers import PEERS
from gankernels.bench.rows import Row


def is_ours(row: Row) -> bool:
    """Whether a row is one of our implementations, not a peer."""
    return row["provider"].startswith("gankernels")


def is_correct(row: Row) -> bool:
    """Whether a row passed its check; otherwise it is "wrong: ..." or "error: ..." and has no time."""
    return row["correct"] == "yes"


def number(text: str | None) -> float | None:
    """A cell as a finite number; None where it is empty or holds none."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def milliseconds(row: Row) -> float | None:
    """The median of a row that passed its check, in ms; None for all others."""
    value = number(row["ms"])
    return value if is_correct(row) and value else None


def images_per_second(row: Row) -> float | None:
    """The rate of a whole step, whose shape begins with the batch; None for all other rows."""
    median = milliseconds(row)
    if not median or not row["mode"].startswith(STEP):
        return None
    return 1e3 * Key.of(row).batch / median


class Key(NamedTuple):
    """What the rows that compete with each other have in common."""

    device: str
    op: str
    position: str
    shape: str
    dtype: str
    mode: str

    @classmethod
    def of(cls, row: Row) -> Key:
        """The key of one row."""
        return cls(*(row[field] for field in cls._fields))

    @property
    def batch(self) -> int:
        """What the shape begins with: of a step, the pictures that it takes."""
        return int(self.shape.split("x")[0])


@dataclass(frozen=True)
class Group:
    """The rows that compete: one op, at one position, in one dtype and mode."""

    key: Key
    rows: Sequence[Row]

    def fastest(self, wanted: Callable[[Row], bool]) -> Row | None:
        """The fastest correct row among those ``wanted``."""
        timed = [row for row in self.rows if wanted(row) and milliseconds(row)]
        return min(timed, key=lambda row: milliseconds(row) or math.inf, default=None)

    @property
    def peer(self) -> Row | None:
        """The best peer."""
        return self.fastest(lambda row: row["provider"] in PEERS)

    @property
    def eager(self) -> Row | None:
        """Stock PyTorch as it comes, if it passed its check."""
        return self.fastest(lambda row: row["provider"] == "eager")

    @property
    def best(self) -> Row | None:
        """Our fastest correct implementation."""
        return self.fastest(is_ours)

    def against_peer(self) -> float | None:
        """How many times faster our best is than the best peer; below 1 we lose. None where either has no time."""
        return _ratio(self.peer, self.best)

    def against_eager(self) -> float | None:
        """How many times faster our best is than eager."""
        return _ratio(self.eager, self.best)

    def floor_share(self) -> float | None:
        """The floor's part of our best's time: 1 is as fast as the machine allows."""
        return number(self.best["floor_share"]) if self.best else None


def groups(rows: Iterable[Row]) -> list[Group]:
    """The groups of ``rows``, in the order in which they first occur."""
    members: dict[Key, list[Row]] = {}
    for row in rows:
        members.setdefault(Key.of(row), []).append(row)
    return [Group(key, found) for key, found in members.items()]


class Spread(NamedTuple):
    """Ratios at several positions: their geometric mean, the least and the greatest."""

    mean: float
    low: float
    high: float


def spread(values: Iterable[float | None]) -> Spread | None:
    """The :class:`Spread` of the values that are there; None without any above zero."""
    known = [value for value in values if value]
    if not known:
        return None
    return Spread(math.exp(sum(map(math.log, known)) / len(known)), min(known), max(known))


@dataclass(frozen=True)
class Summary:
    """An op in one mode and dtype, over all its positions: our best implementation's figures."""

    device: str
    op: str
    mode: str
    dtype: str
    groups: Sequence[Group]

    @property
    def against_peer(self) -> Spread | None:
        """Speed-up against each position's best peer."""
        return spread(group.against_peer() for group in self.groups)

    @property
    def against_eager(self) -> Spread | None:
        """Speed-up against eager."""
        return spread(group.against_eager() for group in self.groups)

    @property
    def floor_share(self) -> Spread | None:
        """Share of the floor."""
        return spread(group.floor_share() for group in self.groups)

    @property
    def lost(self) -> list[Group]:
        """The positions where the best peer is faster than our best."""
        return [group for group in self.groups if (group.against_peer() or 1) < 1]

    @property
    def failed(self) -> list[Row]:
        """Our rows that are wrong or did not run."""
        return [row for group in self.groups for row in group.rows if is_ours(row) and not is_correct(row)]


def summarise(rows: Iterable[Row]) -> list[Summary]:
    """One :class:`Summary` for each device, op, mode and dtype, in the order of the rows."""
    members: dict[tuple[str, str, str, str], list[Group]] = {}
    for group in groups(rows):
        key = group.key
        members.setdefault((key.device, key.op, key.mode, key.dtype), []).append(group)
    return [Summary(*key, found) for key, found in members.items()]


def _ratio(slower: Row | None, faster: Row | None) -> float | None:
    if slower is None or faster is None:
        return None
    return (milliseconds(slower) or math.nan) / (milliseconds(faster) or math.nan)
