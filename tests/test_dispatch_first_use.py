"""What dispatch checks at the first use of an op where tune has not run."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import planted
import pytest
import torch
from planted import KINDS, plant, ran, square
from torch._subclasses.fake_tensor import FakeTensorMode

import gankernels
from gankernels import _native, dispatch, selfcheck, verdicts
from gankernels.verdicts import Verdict


@pytest.fixture
def checked(fresh, monkeypatch):
    """The CPU, treated as a GPU is: what was not tuned is checked at its first use."""
    monkeypatch.setattr(dispatch, "SELF_CHECKED", ("cpu",))


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("gradient", "3x5: result 1: error "),
        ("unwritten", "3x5: result 0: error "),
        ("raises", "3x5: RuntimeError: no kernel image is available"),
    ],
)
def test_a_wrong_kernel_is_dropped_at_its_first_use(checked, monkeypatch, caplog, fault, why):
    plant(monkeypatch, cuda=fault)
    x = torch.randn(3, requires_grad=True)
    with caplog.at_level(logging.WARNING, "gankernels"):
        for _ in range(3):
            square(x).sum().backward()
    assert ran[-3:] == ["triton"] * 3
    (record,) = caplog.records
    assert record.getMessage().startswith(
        "planted runs on triton for cpu tensors (cuda: fails its self-check in float32: "
    )
    assert why in record.getMessage()
    torch.testing.assert_close(x.grad, 6 * x.detach())
    found = gankernels.doctor()["ops"][planted.OP]["cpu"]
    assert found["cuda"].startswith(f"wrong on this machine: float32: {why}")
    assert found["triton"].startswith("chosen: ")


def test_each_kernel_is_checked_once_and_others_are_not(checked, monkeypatch):
    plant(monkeypatch, cuda="gradient", triton="raises")
    square(torch.randn(3))
    assert set(ran) == {"cuda", "triton", "cpu", "reference"}
    ran.clear()
    square(torch.randn(3))
    assert ran == ["cpu"]
    plant(monkeypatch)
    square(torch.randn(3).double())
    assert set(ran) == {"cuda", "reference"}


def test_all_wrong_leaves_the_reference(checked, monkeypatch):
    plant(monkeypatch, cuda="gradient", triton="raises", cpu="unwritten")
    square(torch.randn(3))
    assert ran[-1] == "reference"


def test_a_valid_cache_makes_the_check_needless(checked, monkeypatch):
    plant(monkeypatch)
    sizes = dict.fromkeys(verdicts.SIZE_CLASSES, Verdict("cuda", {"cuda": 1}, {}))
    verdicts.write(torch.device("cpu"), {planted.OP: {"float32": sizes}})
    dispatch.forget()
    square(torch.randn(3))
    assert ran == ["cuda"]


def test_a_cpu_is_not_checked(fresh, monkeypatch):
    plant(monkeypatch, cuda="gradient")
    square(torch.randn(3))
    assert ran == ["cuda"]


def test_nothing_is_checked_or_logged_during_capture(checked, monkeypatch, caplog):
    plant(monkeypatch, cuda="gradient")
    monkeypatch.setattr(selfcheck, "_capturing", lambda device: True)
    square(torch.randn(3))
    assert (ran, caplog.records) == (["cuda"], [])
    monkeypatch.setattr(selfcheck, "_capturing", lambda device: False)
    square(torch.randn(3))
    assert ran[-1] == "triton"


def test_nothing_is_checked_while_compiling(checked, monkeypatch):
    plant(monkeypatch, cuda="gradient")
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend="eager")
    def step(x):
        return x + KINDS[dispatch.choose(planted.OP, x).impl]

    assert int(step(torch.zeros(3))[0]) == KINDS["cuda"]
    assert ran == []
    assert dispatch.choose(planted.OP, torch.zeros(3)).impl == "triton"


def test_the_caller_and_the_check_do_not_meet(checked, monkeypatch):
    """No grad, inference mode, autocast, a random state and a dispatch mode of the caller's."""
    plant(monkeypatch)
    before = torch.get_rng_state()
    with torch.inference_mode(), torch.autocast("cpu"), FakeTensorMode(allow_non_fake_inputs=True):
        assert dispatch.choose(planted.OP, torch.zeros(3)).impl == "cuda"
        assert not torch.is_grad_enabled()
    assert set(ran) == {"cuda", "reference"}
    assert torch.equal(torch.get_rng_state(), before)


def test_threads_check_once(checked, monkeypatch):
    plant(monkeypatch)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: dispatch.choose(planted.OP, torch.zeros(3)).impl, range(16)))
    assert set(found) == {"cuda"}
    assert ran.count("cuda") == 2


def test_an_op_may_use_itself_in_its_check(checked, monkeypatch):
    plant(monkeypatch)
    monkeypatch.setitem(selfcheck._checks, planted.OP, lambda: [replace(c, ours=twice) for c in planted.checks()])

    def twice(x, impl):
        dispatch.choose(planted.OP, x)
        return square(x, impl)

    assert dispatch.choose(planted.OP, torch.zeros(3)).impl == "cuda"


def test_without_memory_nothing_is_decided(checked, monkeypatch):
    plant(monkeypatch, cuda="gradient")
    verify = selfcheck.verify

    def no_memory(*_):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(selfcheck, "verify", no_memory)
    assert dispatch.choose(planted.OP, torch.zeros(3)).impl == "cuda"
    monkeypatch.setattr(selfcheck, "verify", verify)
    assert dispatch.choose(planted.OP, torch.zeros(3)).impl == "triton"


def test_an_op_without_checks_runs(checked, monkeypatch):
    plant(monkeypatch)
    monkeypatch.delitem(selfcheck._checks, planted.OP)
    square(torch.randn(3))
    assert ran == ["cuda"]


@pytest.mark.skipif(_native.extension is None, reason="the extension is not built")
@pytest.mark.parametrize("dtype", selfcheck.DTYPES, ids=str)
def test_conditional_batch_norm_passes_its_checks(dtype):
    checks = selfcheck.checks_of("conditional_batch_norm")
    assert len(checks) > 4
    for check in checks:
        assert selfcheck.verify(check, "cpu", torch.device("cpu"), dtype) is None
