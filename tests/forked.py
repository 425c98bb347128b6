"""Processes that are forked from one which has imported torch, and nothing but imported it."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable

import torch

import gankernels


def start(function: Callable, arguments: tuple, processes: int) -> None:
    """Call ``function(number, *arguments)``, importable by name, in each process; raise what one of them raises."""
    modules = ["gankernels.ops", "torch._dynamo"]
    multiprocessing.get_context("forkserver").set_forkserver_preload(modules)
    torch.multiprocessing.start_processes(function, arguments, processes, start_method="forkserver")


def on_lesser_processor(isa: str, function: Callable[[], None]) -> None:
    """Call ``function()``, importable by name, in a process that is told to use the CPU kernels of ``isa``."""
    available = gankernels.doctor()["cpu"]["kernels_built_for"]
    start(_limited, (isa, isa if available != "baseline" else "baseline", function), 1)


def _limited(_: int, isa: str, expected: str, function: Callable[[], None]) -> None:
    os.environ["GANKERNELS_CPU_ISA"] = isa
    torch.manual_seed(0)
    torch.set_num_threads(1)
    function()
    assert gankernels.doctor()["cpu"]["kernels_built_for"] == expected
