"""Runs a function in several processes that are ranks of one gloo group."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
from forked import start

from interpreter import quicken


def run_in_ranks(function: Callable[[int], None], ranks: int) -> None:
    """Call ``function(rank)``, importable by name, in ``ranks`` processes; raise what one of them raises."""
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        start(_rank, (function, ranks, store.as_uri()), ranks)


def _rank(rank: int, function: Callable[[int], None], ranks: int, store: str) -> None:
    torch.set_num_threads(1)
    quicken()
    # A rank that waits for another in vain fails the test soon.
    torch.distributed.init_process_group(
        "gloo", init_method=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=120)
    )
    try:
        function(rank)
    finally:
        torch.distributed.destroy_process_group()
