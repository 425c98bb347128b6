from __future__ import annotations

import contextlib
import signal
import time

import pytest
import torch

from gankernels.bench import (
    DOUBLE_BACKWARD,
    FORWARD,
    FORWARD_BACKWARD,
    STEP,
    Benchmark,
    Case,
    contest,
    providers,
    run,
    runner,
)
from gankernels.bench.ceilings import Ceilings
from gankernels.bench.declarations import ALL
from gankernels.bench.patience import patience
from gankernels.bench.problem import Problem
from gankernels.bench.rows import COLUMNS
from gankernels.bench.timing import Times
from gankernels.errors import InputError

CEILINGS = Ceilings("cpu", [(1e6, 20e9)], {"float32": 1e11, "bfloat16": 1e11}, launch=1e-6, launch_outside=1e-6)
CASE = Case("my network, layer 1", (8, 8, 16, 16))


@pytest.fixture(autouse=True)
def _no_compiler(monkeypatch):
    """torch.compile is replaced by the function itself: a compilation takes seconds."""
    monkeypatch.setattr(providers, "compiled", lambda function, mode, compile_mode: providers.in_mode(function, mode))
    monkeypatch.setattr(runner, "keep_freed_memory", lambda: True)


def scale(**fields) -> Benchmark:
    defaults = {
        "op": "scale",
        "cases": [CASE],
        "inputs": lambda case, rng: [torch.randn(case.shape, generator=rng)],
        "stock": lambda case, x: 2 * x,
        "ours": lambda case, x, impl: torch.add(x, x),
        "impls": ["mine"],
        "bytes": lambda case, mode, itemsize: case.passes({FORWARD: 2, FORWARD_BACKWARD: 4}.get(mode, 8), itemsize),
    }
    return Benchmark(**(defaults | fields))


def measure(*benchmarks: Benchmark, **options) -> dict[str, dict[str, str]]:
    """The rows of one group by provider."""
    rows = run(benchmarks, device="cpu", repeats=2, ceilings=CEILINGS, **options)
    assert all(tuple(row) == COLUMNS or set(row) == set(COLUMNS) for row in rows)
    assert all(row["floor_kind"] for row in rows)
    return {row["provider"]: row for row in rows}


def one(**fields) -> Benchmark:
    return scale(**({"dtypes": [torch.float32], "modes": [FORWARD_BACKWARD]} | fields))


def test_an_op_of_your_own():
    rows = run([scale()], device="cpu", repeats=1, ceilings=CEILINGS)
    assert len(rows) == 2 * 2 * 4  # dtypes, modes, providers
    assert {row["correct"] for row in rows} == {"yes"}
    assert [row["provider"] for row in rows[:4]] == ["eager", "eager-best", "compile", "gankernels-mine"]
    row = rows[-1]
    assert (row["op"], row["position"], row["shape"]) == ("scale", "my network, layer 1", "8x8x16x16")
    assert (row["dtype"], row["mode"], row["impl"], row["layout"]) == (
        "bfloat16",
        "forward+backward",
        "mine",
        "channels_last",
    )
    assert float(row["ms_p20"]) <= float(row["ms"]) <= float(row["ms_p80"])
    assert row["floor_kind"] == "memory 20 GB/s"
    floor_ms = 4 * 8 * 8 * 16 * 16 * 2 / 20e9 * 1e3
    assert float(row["floor_share"]) == pytest.approx(floor_ms / float(row["ms"]), abs=1e-3)
    # y and dx, in 2 bytes.
    assert float(row["peak_mib"]) == pytest.approx(2 * 8 * 8 * 16 * 16 * 2 / 2**20, abs=0.01)
    assert (row["torch"], row["driver"]) == (torch.__version__, "")


def test_providers_say_how_they_ran():
    rows = run([scale(modes=[FORWARD])], device="cpu", repeats=1, ceilings=CEILINGS)
    assert [(row["impl"], row["layout"]) for row in rows[:4]] == [
        ("float32", "contiguous"),
        ("float32 channels_last", "channels_last"),
        ("default", "channels_last"),
        ("mine", "channels_last"),
    ]
    assert rows[4]["impl"] == "float32"
    assert rows[5]["impl"] in ("bfloat16 channels_last", "bfloat16 contiguous")


def test_without_pixels_there_is_no_layout():
    rows = measure(one(cases=[Case("a linear layer", (16, 8))], dtypes=[torch.bfloat16]))
    assert {row["layout"] for row in rows.values()} == {"contiguous"}
    assert rows["eager-best"]["impl"] == "bfloat16 contiguous"


def test_a_wrong_contender_gets_no_time():
    rows = measure(one(ours=lambda case, x, impl: 2.001 * x))
    wrong = rows["gankernels-mine"]
    assert wrong["correct"].startswith("wrong: result 0: largest error")
    assert all(not wrong[name] for name in ("ms", "ms_p20", "ms_p80", "speedup_vs_eager", "floor_share", "peak_mib"))
    assert rows["eager"]["ms"]


@pytest.mark.parametrize("other", [lambda x: x[:1] * 2, lambda x: (2 * x, x), lambda x: 2 * x.detach()])
def test_a_contender_of_another_kind_is_wrong(other):
    row = measure(one(ours=lambda case, x, impl: other(x)))["gankernels-mine"]
    assert row["correct"].startswith(("wrong: ", "error: "))
    assert not row["ms"]


def test_a_contender_that_raises_says_so_in_one_line():
    def broken(case: Case, x: torch.Tensor, impl: str) -> torch.Tensor:
        raise RuntimeError("no such\nkernel " + "x" * 1000)

    row = measure(one(ours=broken))["gankernels-mine"]
    assert row["correct"].startswith("error: RuntimeError: no such kernel xxx")
    assert len(row["correct"]) < 250
    assert not row["ms"]


def test_a_contender_that_fails_later_does_not_stop_the_others():
    calls = []

    def tires(case: Case, x: torch.Tensor, impl: str) -> torch.Tensor:
        calls.append(x)
        if len(calls) > 4:
            raise MemoryError("no more")
        return 2 * x

    rows = measure(one(ours=tires, impls=["tires"]))
    assert rows["gankernels-tires"]["correct"] == "error: MemoryError: no more"
    assert rows["eager"]["ms"]


def test_a_compiler_that_fails_is_a_row(monkeypatch):
    def fails(function, mode, compile_mode):
        def call(inputs, cotangents):
            raise RuntimeError("cannot compile")

        return call

    monkeypatch.setattr(providers, "compiled", fails)
    rows = measure(one())
    assert rows["compile"]["correct"] == "error: RuntimeError: cannot compile"
    assert rows["gankernels-mine"]["speedup_vs_best_peer"]


def test_a_peer_that_does_not_end_is_a_row_that_says_so(monkeypatch):
    def endless(function, mode, compile_mode):
        def call(inputs, cotangents):
            while True:
                with contextlib.suppress(Exception):  # as a compiler's own handlers do
                    time.sleep(10)

        return call

    monkeypatch.setattr(providers, "compiled", endless)
    monkeypatch.setattr(contest, "PATIENCE_S", 0.05)
    rows = measure(one())
    assert rows["compile"]["correct"] == "error: TimeoutError: no result within 0.05 s"
    assert rows["gankernels-mine"]["ms"]
    assert rows["eager"]["ms"]


def test_patience_gives_the_timer_back():
    def alarm(signum, frame):
        raise AssertionError("rang")

    former = signal.signal(signal.SIGALRM, alarm)
    left, again = signal.setitimer(signal.ITIMER_REAL, 100.0)
    try:
        with patience(0.5):
            pass
        assert signal.getsignal(signal.SIGALRM) is alarm
        assert 99 < signal.getitimer(signal.ITIMER_REAL)[0] <= 100
    finally:
        signal.setitimer(signal.ITIMER_REAL, left, again)
        signal.signal(signal.SIGALRM, former)


def test_without_a_reference_nobody_is_right():
    def broken(case: Case, x: torch.Tensor) -> torch.Tensor:
        raise ValueError("no")

    rows = measure(one(stock=broken))
    assert {row["correct"] for row in rows.values()} == {"error: the reference: ValueError: no"}
    assert len(rows) == 4


def test_the_peer_is_the_fastest_correct_one(monkeypatch):
    def compiled(function, mode, compile_mode):
        def call(inputs, cotangents):
            return [torch.zeros(1)]

        return call

    monkeypatch.setattr(providers, "compiled", compiled)
    rows = measure(one(stock=lambda case, x: x.sin().sin(), ours=lambda case, x, impl: x.sin().sin()))
    assert rows["compile"]["correct"].startswith("wrong: ")
    ms = {name: float(row["ms"]) for name, row in rows.items() if row["ms"]}
    peer = min(ms["eager"], ms["eager-best"])
    for name, median in ms.items():
        assert float(rows[name]["speedup_vs_best_peer"]) == pytest.approx(peer / median, abs=0.006)
        assert float(rows[name]["speedup_vs_eager"]) == pytest.approx(ms["eager"] / median, abs=0.006)


def test_an_op_that_writes_to_its_inputs_is_checked_on_fresh_ones():
    def halves(case: Case, x: torch.Tensor, u: torch.Tensor, **_) -> torch.Tensor:
        with torch.no_grad():
            u.mul_(0.5)
        return x * u

    rows = measure(
        one(
            inputs=lambda case, rng: [torch.randn(case.shape, generator=rng), torch.ones(1)],
            stock=halves,
            ours=halves,
            modes=[FORWARD],
        )
    )
    assert {row["correct"] for row in rows.values()} == {"yes"}


def test_a_step_is_compared_by_what_it_returns():
    def step(case: Case, x: torch.Tensor, **_) -> list[torch.Tensor]:
        return list(torch.autograd.grad(x.square().sum(), x))

    rows = measure(one(stock=step, ours=step, modes=[STEP], judged=lambda outputs: [outputs[0].sum()]))
    assert {row["correct"] for row in rows.values()} == {"yes"}
    wrong = measure(one(stock=step, ours=lambda case, x, impl: [x], modes=[STEP]))["gankernels-mine"]
    assert wrong["correct"].startswith("wrong: ")


@pytest.mark.parametrize(
    ("benchmark_of", "mode"),
    [pytest.param(b, mode, id=f"{b.op}-{mode}") for b in ALL for mode in b.modes if mode != FORWARD],
)
def test_our_kernels_are_found_correct(benchmark_of, mode, monkeypatch):
    def called_once(contenders, *_, **__):
        for contender in contenders.values():
            contender(0)
        return dict.fromkeys(contenders, Times(1.0, 1.0, 1.0))

    # The network's own shapes take up to a second a call, and their times are not looked at.
    monkeypatch.setattr(contest, "interleave", called_once)
    smallest = min(benchmark_of.cases, key=lambda case: (benchmark_of.flops(case, mode), case.passes(1, 1)))
    rows = measure(
        Benchmark(**(vars(benchmark_of) | {"cases": [smallest], "modes": [mode], "dtypes": benchmark_of.dtypes[-1:]}))
    )
    assert {name: row["correct"] for name, row in rows.items()} == dict.fromkeys(rows, "yes")


def test_a_whole_penalty_compiles(monkeypatch):
    monkeypatch.undo()
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, mode: compile(function, backend="aot_eager"))
    cubed = one(stock=lambda case, x: x**3, ours=lambda case, x, impl: x**3)
    problem = Problem(cubed, CASE, torch.float32, DOUBLE_BACKWARD, "cpu")
    compiled = providers.peers(cubed, CASE, torch.float32, DOUBLE_BACKWARD, ["default"])[-1]
    with providers.peers_at_their_best():
        assert problem.flaw(compiled) is None


def test_memory_that_is_not_kept_is_said(monkeypatch):
    assert measure(one(), memory="system")["eager"]["mode"] == "forward+backward, system memory"
    assert measure(one())["eager"]["mode"] == "forward+backward"
    monkeypatch.setattr(runner, "keep_freed_memory", lambda: False)
    assert measure(one())["eager"]["mode"] == "forward+backward, system memory"
    with pytest.raises(InputError, match=r"^memory: got 'lots'"):
        measure(one(), memory="lots")


def test_a_device_that_is_not_there():
    with pytest.raises(InputError, match=r"^device: got 'tpu', expected "):
        run([scale()], device="tpu", ceilings=CEILINGS)


def test_progress_is_told():
    told = []
    run([one()], device="cpu", repeats=1, ceilings=CEILINGS, progress=lambda *told_now: told.append(told_now))
    assert told == [(0, 1, "scale, my network, layer 1, float32, forward+backward"), (1, 1, "done")]


def test_the_error_of_a_row_names_files_without_their_folders():
    error = RuntimeError("g++ /tmp/some/folder/kernel.cpp -o /tmp/out.so failed:\n  1/2 done, and/or")
    assert contest._one_line(error) == "RuntimeError: g++ kernel.cpp -o out.so failed: 1/2 done, and/or"


def test_the_error_of_a_compiler_is_what_it_refused():
    said = "C++ compile error\n\nCommand:\ng++ /tmp/a/main.cpp -o out\n\nOutput:\n"
    said += (
        "/tmp/a/main.cpp:3:7: warning: unused\n/tmp/a/main.cpp:5:9: error: conflicting declaration 'auto b'\n  5 | b\n"
    )
    assert contest._one_line(RuntimeError(said)) == "RuntimeError: error: conflicting declaration 'auto b'"
