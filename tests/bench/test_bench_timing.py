from __future__ import annotations

import gc
import math
import time

import pytest
import torch
import torch.nn.functional as F

from gankernels.bench.ceilings import Ceilings, measure
from gankernels.bench.memory import peak_mib, saved_mib
from gankernels.bench.timing import ContenderError, interleave
from gankernels.ops import conditional_batch_norm
from implementations import needs_extension

CEILINGS = Ceilings(
    "cpu",
    copy=[(1e6, 20e9), (1e7, 80e9), (1e8, 20e9), (1e9, 10e9)],
    gemm={"float32": 1e12, "bfloat16": 4e12},
    launch=2e-6,
    launch_outside=2e-6,
)


def test_every_contender_is_timed_as_often():
    calls = {"a": 0, "b": 0}

    def contender(name: str, seconds: float):
        def call(number: int) -> None:
            calls[name] += 1
            time.sleep(seconds)

        return call

    # Long enough that none is warmed up before each sample, however busy the machine is.
    times = interleave({"a": contender("a", 12e-3), "b": contender("b", 15e-3)}, "cpu", repeats=5)
    assert list(times) == ["a", "b"]
    assert calls["a"] == calls["b"]
    for found in times.values():
        assert found.turns == 5
        assert not found.captured
        assert 0 < found.p20 <= found.median <= found.p80


def test_short_calls_are_batched_and_rotate_through_the_sets():
    seen = []
    interleave({"short": seen.append}, "cpu", repeats=2, sets=3)
    assert len(seen) > 50
    assert set(seen) == {0, 1, 2}


def test_the_budget_bounds_the_turns():
    times = interleave({"slow": lambda number: time.sleep(0.01)}, "cpu", budget_s=0.1)
    assert 7 <= times["slow"].turns <= 11
    assert interleave({}, "cpu") == {}


def test_one_that_raises_is_named():
    def broken(number: int) -> None:
        raise ValueError("no")

    with pytest.raises(ContenderError, match=r"^broken$") as caught:
        interleave({"fine": lambda number: None, "broken": broken}, "cpu", repeats=1)
    assert isinstance(caught.value.__cause__, ValueError)
    assert gc.isenabled()


def test_garbage_is_not_collected_while_timing():
    enabled = []
    interleave({"probe": lambda number: enabled.append(gc.isenabled())}, "cpu", repeats=1)
    assert not any(enabled)
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("bytes", "flops", "launches", "dtype", "ms", "kind"),
    [
        (1e9, 1e9, 1, torch.float32, 100, "memory 10 GB/s"),
        (1e6, 1e12, 1, torch.float32, 1000, "compute 1 TFLOP/s"),
        (1e6, 1e12, 1, torch.bfloat16, 250, "compute 4 TFLOP/s"),
        (1e6, 1e12, 1, torch.float16, 1000, "compute 1 TFLOP/s"),
        (1e2, 1e2, 3, torch.float32, 6e-3, "launch 2 us"),
    ],
)
def test_the_floor_is_the_largest_term(bytes, flops, launches, dtype, ms, kind):
    found, which = CEILINGS.floor(bytes, flops, launches, dtype)
    assert found == pytest.approx(ms)
    assert which == kind


def test_the_copy_rate_is_that_of_the_working_set():
    assert CEILINGS.bandwidth(1e12) == 10e9
    # A small copy shows the launch; memory is as fast there as it is anywhere above.
    assert CEILINGS.bandwidth(1e6) == CEILINGS.bandwidth(1) == 80e9
    assert CEILINGS.bandwidth(math.sqrt(1e7 * 1e8)) == pytest.approx(50e9)
    assert CEILINGS.floor(1e9, 0, 1, torch.float32, working_set=1e7)[1] == "memory 80 GB/s"
    assert CEILINGS.floor(1e7, 0, 1, torch.float32, working_set=1e12)[1] == "memory 80 GB/s"


def test_ceilings_are_measured(monkeypatch):
    from gankernels.bench import ceilings

    monkeypatch.setattr(ceilings, "_SECONDS", 0.0)
    monkeypatch.setitem(ceilings._COPY_BYTES, "cpu", (2**14, 2**20))
    monkeypatch.setitem(ceilings._GEMM_SIZE, "cpu", 64)
    found = measure("cpu", [torch.bfloat16])
    assert [size for size, _ in found.copy] == [2**14, 2**20]
    assert set(found.gemm) == {"float32", "bfloat16"}
    assert all(rate > 0 for rate in (*found.gemm.values(), found.launch, *(rate for _, rate in found.copy)))
    assert any("GB/s" in figure for figure in found.summary().values())
    assert set(found.as_dict()) == {"device", "copy", "gemm", "launch", "launch_outside"}


def test_peak_memory_counts_what_is_alive_at_once():
    x = torch.zeros(2**18)  # 1 MiB

    def one_after_the_other() -> torch.Tensor:
        for _ in range(3):
            y = x + 1
            del y
        return x + 2

    assert peak_mib(one_after_the_other, "cpu") == pytest.approx(1, abs=0.01)
    assert peak_mib(lambda: (x + 1, x + 2, x + 3), "cpu") == pytest.approx(3, abs=0.01)
    assert peak_mib(lambda: x.add_(1), "cpu") == pytest.approx(0, abs=0.01)


def test_peak_memory_counts_native_kernels(capfd):
    from gankernels import dispatch

    if dispatch.unavailable("conditional_batch_norm", "cpu", "cpu") is not None:
        pytest.skip("no C++ kernels here")
    x, gain = torch.randn(4, 64, 32, 32), torch.ones(4, 64)
    found = peak_mib(lambda: conditional_batch_norm(x, gain, gain, impl="cpu"), "cpu")
    assert 1 <= found < 1.2
    assert capfd.readouterr().err == ""


@pytest.mark.gpu
def test_contenders_are_captured_on_a_gpu():
    sets = [torch.randn(1024, device="cuda") for _ in range(4)]

    def waits(number: int) -> float:
        return sets[number].sum().item()

    times = interleave({"plain": lambda number: sets[number].exp(), "waits": waits}, "cuda", repeats=3, sets=4)
    assert times["plain"].captured
    assert not times["waits"].captured
    assert all(found.median > 0 for found in times.values())
    assert peak_mib(lambda: sets[0].exp(), "cuda") == pytest.approx(1024 * 4 / 2**20, abs=0.01)


def test_what_is_saved_for_the_backward():
    x, y = torch.randn(512, 512, requires_grad=True), torch.randn(512, 512, requires_grad=True)
    assert saved_mib(lambda x: x + 1, [x]) == 0
    assert saved_mib(lambda x: x.relu(), [x]) == 1
    assert saved_mib(lambda x, y: x * y, [x, y]) == 2
    assert saved_mib(lambda x: x * x[:256].sum(), [x]) == pytest.approx(1, abs=1e-4)


@needs_extension
def test_conditional_batch_norm_saves_its_input_alone():
    x, gain = torch.randn(4, 64, 16, 16, requires_grad=True), torch.ones(4, 64, requires_grad=True)

    def eager(x, gain):
        return F.relu(F.batch_norm(x, None, None, training=True) * gain[:, :, None, None] + gain[:, :, None, None])

    ours = saved_mib(lambda x, gain: conditional_batch_norm(x, gain, gain, activation="relu"), [x, gain])
    assert ours <= 0.4 * saved_mib(eager, [x, gain])
