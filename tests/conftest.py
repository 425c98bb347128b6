"""The seed, the threads, the devices and the poisoned allocator that the tests share."""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    # Before triton is imported: its interpreter runs the kernels on CPU tensors.
    os.environ.setdefault("TRITON_INTERPRET", "1")
# A developer's own switches must not decide what is tested, nor a test touch a developer's cache.
os.environ.pop("GANKERNELS_IMPL", None)

import pytest

from gankernels import dispatch
from interpreter import quicken

quicken()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def _seed_and_threads() -> None:
    torch.manual_seed(0)
    # Two workers share two cores.
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GANKERNELS_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """A process that has chosen nothing yet, with an empty cache."""
    monkeypatch.setenv("GANKERNELS_CACHE", str(tmp_path / "cache"))
    dispatch.forget()
    yield
    dispatch.forget()


@pytest.fixture
def poisoned():
    """Fills every new allocation with NaN, so that an output that a kernel does not write is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)
