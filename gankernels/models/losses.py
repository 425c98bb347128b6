"""The losses that the trainer offers, of those in :mod:`gankernels.losses`."""

from __future__ import annotations

from gankernels.losses import LOSSES as ALL
from gankernels.losses import Loss, hinge_d, hinge_g, non_saturating_d, non_saturating_g

__all__ = ["LOSSES", "Loss", "hinge_d", "hinge_g", "non_saturating_d", "non_saturating_g"]

#: The trainer's ``--loss`` by name.
LOSSES = {name: ALL[name] for name in ("hinge", "non-saturating")}
