from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import planted
import pytest
import torch
from planted import plant

from gankernels import _native, cli, dispatch, verdicts
from gankernels.bench import Case, declarations, tune
from gankernels.bench.declarations.conditional_batch_norm import BENCHMARK as CONDITIONAL_BATCH_NORM
from gankernels.errors import InputError
from gankernels.ops.conditional_batch_norm import op, reference

NORM = "conditional_batch_norm"
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _small(fresh, monkeypatch):
    """Little to tune, and little time for it."""
    monkeypatch.setitem(tune._BUDGET_S, True, 0.001)
    monkeypatch.setitem(tune._BUDGET_S, False, 0.001)
    monkeypatch.setattr(tune, "keep_freed_memory", lambda: False)
    small = replace(CONDITIONAL_BATCH_NORM, cases=[Case("tiny", (8, 16, 9, 9))])
    monkeypatch.setattr(declarations, "ALL", (small, planted.BENCHMARK))


@pytest.mark.parametrize("fault", ["gradient", "unwritten", "raises"])
def test_a_planted_kernel_is_caught_and_never_chosen(monkeypatch, capsys, fault):
    plant(monkeypatch, cuda=fault)
    assert tune.main(["--op", planted.OP]) == 1
    text = capsys.readouterr().out
    for dtype in ("float32", "bfloat16", "float16", "float64"):
        assert f"WRONG: cuda in {dtype}: " in text
    ((found, _),) = [(f, None) for f in [verdicts.read(CPU).ops[planted.OP]]]
    for dtype, sizes in found.items():
        for size, verdict in sizes.items():
            assert set(verdict.wrong) == {"cuda"}
            timed = dtype in ("float32", "bfloat16") and size != "large"
            assert set(verdict.ms) == ({"triton", "cpu", "reference"} if timed else set())
            assert (verdict.chosen in verdict.ms) if timed else verdict.chosen is None
    for numel in (1, 2**20, 2**23):
        for dtype in (torch.float32, torch.float64):
            assert dispatch.choose(planted.OP, torch.empty(1, dtype=dtype), numel=numel).impl != "cuda"


def test_what_the_checks_miss_the_benchmark_shapes_find(monkeypatch):
    plant(monkeypatch, triton="gradient")
    monkeypatch.delitem(tune.selfcheck._checks, planted.OP)
    ((_, found),) = tune.tune([planted.OP])
    assert found["float32"]["large"].wrong["triton"].startswith("tiny: result 1: ")
    assert set(found) == {"float32", "bfloat16"}


def test_the_right_ones_are_timed_and_the_fastest_chosen(monkeypatch, capsys):
    plant(monkeypatch)
    speed = {"reference": 3.0, "cpu": 0.5, "triton": 1.0, "cuda": 2.0}

    def interleave(contenders, device, **_):
        return {name: SimpleNamespace(median=speed[name]) for name in contenders}

    monkeypatch.setattr(tune, "interleave", interleave)
    assert tune.main(["--op", planted.OP, "--json", "--quick"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["path"] == str(verdicts.path())
    small = printed["verdicts"][planted.OP]["bfloat16"]["small"]
    assert small == {"chosen": "cpu", "ms": speed, "wrong": {}}
    assert dispatch.choose(planted.OP, torch.empty(1)).impl == "cpu"
    assert dispatch.choose(planted.OP, torch.empty(1), numel=2**23) == ("cuda", "default on cpu")


def test_one_that_fails_on_the_clock_is_wrong(monkeypatch):
    plant(monkeypatch)

    def interleave(contenders, device, **_):
        if "triton" in contenders:
            raise tune.ContenderError("triton") from ValueError("capture\nfailed")
        return {name: SimpleNamespace(median=1.0) for name in contenders}

    monkeypatch.setattr(tune, "interleave", interleave)
    ((_, found),) = tune.tune([planted.OP], write=False)
    assert found["float32"]["small"].wrong == {"triton": "tiny: ValueError: capture failed"}
    assert set(found["float32"]["medium"].ms) == {"reference", "cpu", "cuda"}
    assert not verdicts.path().exists()


def broken_forward(x, gain, bias, labels, mean, var, eps, activation, slope, per_sample):
    """As the kernel's, with gradients that are 1% too large."""
    y, mean, var = reference.conditional_batch_norm(
        x, gain, bias, mean, var, eps=eps, activation=activation, slope=slope, per_sample=per_sample
    )
    return 1.01 * y - 0.01 * y.detach(), mean, var


@pytest.mark.skipif(_native.extension is None, reason="the extension is not built")
def test_a_wrong_kernel_of_a_real_op_stays_out_of_new_processes(monkeypatch, capsys):
    monkeypatch.setattr(
        torch.ops, "broken", SimpleNamespace(conditional_batch_norm_forward=broken_forward), raising=False
    )
    monkeypatch.setitem(op.NAMESPACES, "cpu", "broken")
    assert tune.main(["--op", NORM, "--quick"]) == 1
    assert "WRONG: cpu in float32: 2x3x5x7 contiguous, relu, batch statistics: result 1: " in capsys.readouterr().out
    code = """
import torch, gankernels
for threads in (1, 2):
    torch.set_num_threads(threads)
    gankernels.dispatch.forget()
    x = torch.zeros(2, 3, 4, 4)
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        print(gankernels.dispatch.choose("conditional_batch_norm", x.to(dtype)).impl)
"""
    result = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["reference"] * 8
    assert "cpu: wrong on this machine in float32" in result.stderr


@pytest.mark.skipif(_native.extension is None, reason="the extension is not built")
def test_the_real_kernels_are_right(capsys):
    assert tune.main(["--op", NORM, "--dry-run"]) == 0
    assert "nothing written" in capsys.readouterr().out
    assert not verdicts.path().exists()


def test_what_is_done_is_kept_when_it_is_interrupted(monkeypatch):
    plant(monkeypatch)
    steps = tune.tune([planted.OP, NORM])
    next(steps)

    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(tune._Op, "verdicts", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(steps)
    verdicts.forget()
    assert list(verdicts.read(CPU).ops) == [planted.OP]


def test_deterministic_mode_is_given_back(monkeypatch):
    plant(monkeypatch, cuda="raises")
    list(tune.tune([planted.OP]))
    assert not torch.are_deterministic_algorithms_enabled()


def test_bad_input(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(cli.COMMANDS, "tune", ("gankernels.bench.tune", ""))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GANKERNELS_CACHE", str(tmp_path / "file"))
    assert cli.main(["tune"]) == 2
    monkeypatch.setenv("GANKERNELS_CACHE", str(tmp_path))
    assert cli.main(["tune", "--op", "nothing"]) == 2
    assert cli.main(["tune", "--device", "tpu"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" got ")[0] for line in lines] == [
        "gankernels: error: GANKERNELS_CACHE:",
        "gankernels: error: op:",
        "gankernels: error: device:",
    ]
    with pytest.raises(InputError):
        tune.main(["--quack"])
