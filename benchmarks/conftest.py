"""What the pytest-benchmark entry points share: ``pytest benchmarks/ --benchmark-only``.

Each times one provider at a time, by pytest-benchmark's method and with its options, over the declaration that its
module names. The figures of the docs come from ``gankernels bench``, where providers take turns.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from gankernels.bench.problem import Problem
from gankernels.bench.providers import compile_modes, ours, peers, peers_at_their_best
from gankernels.bench.runner import Group, find_device, plan

DEVICE = find_device(None)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One benchmark for each quick group of the module's ``DECLARATION`` and each provider."""
    if "provider" in metafunc.fixturenames:
        cases = [
            pytest.param(group, index, id=f"{group}, {provider.name} {provider.impl}")
            for group in plan([metafunc.module.DECLARATION], quick=True)
            for index, provider in enumerate(_providers(group))
        ]
        metafunc.parametrize(("group", "provider"), cases)


@pytest.fixture
def time_provider(benchmark) -> Callable[[Group, int], None]:
    """Checks one provider of a group, given by its index, and times it."""

    def check_and_time(group: Group, index: int) -> None:
        contenders = _providers(group)
        provider = contenders[index]
        problem = Problem(group.benchmark, group.case, group.dtype, group.mode, DEVICE)
        stock = [p for p in contenders if p.name.startswith("eager") and p.dtype == group.dtype]
        with peers_at_their_best():
            eager = [problem.results(p) for p in stock] if provider.name.startswith("gankernels") else None
            assert problem.flaw(provider, eager) is None
            inputs, cotangents = problem.data(provider)

            def call() -> None:
                provider.call(inputs, cotangents)
                if DEVICE == "cuda":
                    torch.cuda.synchronize()

            benchmark.group = str(group)
            benchmark(call)

    return check_and_time


def _providers(group: Group) -> list:
    benchmark, case, dtype, mode = group
    modes = compile_modes(DEVICE, True, benchmark.flops(case, mode) > 0)
    return [*peers(benchmark, case, dtype, mode, modes), *ours(benchmark, case, dtype, mode, DEVICE)]
