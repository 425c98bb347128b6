"""Training iterations from their measured parts: the recipe's steps of the discriminator, and one of the generator."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import attrgetter

from gankernels.bench.rows import Row
from gankernels.bench.summary import Group, groups, milliseconds, number
from gankernels.train.presets import PRESETS, preset

#: Whose times an iteration is made of: in each step those of eager, of the best peer, or of our best.
EAGER, PEER, BEST = map(attrgetter, ("eager", "peer", "best"))

#: A recipe's penalty -> the kind of step that takes it.
_D_STEPS = {None: "d_step", "r1": "d_step_r1", "wgan-gp": "d_step_wgan_gp", "r1+r2": "d_step_r3gan"}


@dataclass(frozen=True)
class Iteration:
    """What one update of the generator costs by a preset's recipe, without the optimizers.

    Each step has its own best peer, which may be eager in one and compiled in the other.
    """

    d: Group
    """The discriminator's step."""
    g: Group
    """The generator's step."""
    n_dis: int
    """Steps of the discriminator in an iteration."""

    @property
    def images(self) -> int:
        """Real pictures in an iteration."""
        return self.n_dis * self.d.key.batch

    def milliseconds(self, of: Callable[[Group], Row | None]) -> float | None:
        """The time of an iteration whose steps run as ``of`` says; None where one of them has no time."""
        d, g = of(self.d), of(self.g)
        if d is None or g is None:
            return None
        d_ms, g_ms = milliseconds(d), milliseconds(g)
        return None if d_ms is None or g_ms is None else self.n_dis * d_ms + g_ms

    def images_per_second(self, of: Callable[[Group], Row | None]) -> float | None:
        """Real pictures a second."""
        time = self.milliseconds(of)
        return 1e3 * self.images / time if time else None

    def against_peer(self) -> float | None:
        """How many times faster our best is than the best peers; below 1 we lose."""
        theirs, ours = self.milliseconds(PEER), self.milliseconds(BEST)
        return theirs / ours if theirs and ours else None

    def describe(self) -> str:
        """In one line, against the best peers; empty where there is no time of ours."""
        ours, peers, ratio = self.images_per_second(BEST), self.images_per_second(PEER), self.against_peer()
        if not ours:
            return ""
        steps = f"{self.n_dis} discriminator step{'s' if self.n_dis > 1 else ''} and one of the generator"
        theirs = f", best peers {peers:.4g} ({ratio:.2f}x)" if ratio else ", no correct peer"
        return f"{self.d.key.position}, {self.d.key.dtype}, {steps}: {ours:.4g} images/s{theirs}"

    def peak_mib(self, of: Callable[[Group], Row | None]) -> float | None:
        """The larger of the two steps' peaks, in MiB; None where one is not known."""
        peaks = [number(row["peak_mib"]) if row else None for row in (of(self.d), of(self.g))]
        known = [peak for peak in peaks if peak is not None]
        return max(known) if len(known) == len(peaks) else None


def iterations(rows: Iterable[Row]) -> list[Iteration]:
    """One for each preset both of whose steps were measured, with the batch, dtype and mode they have in common."""
    found = {group.key: group for group in groups(rows)}
    pairs = []
    for key, d in found.items():
        name = key.position.partition(",")[0]
        if name not in PRESETS:
            continue
        recipe = preset(name)
        g = found.get(key._replace(op="g_step"))
        if g is not None and key.op == _D_STEPS.get(recipe.penalty):
            pairs.append(Iteration(d, g, recipe.n_dis))
    return pairs
