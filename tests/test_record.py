from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import pytest
import torch
from made_up_rows import TIMES, group, scaled

from gankernels.bench import ceilings
from gankernels.bench.ceilings import Ceilings
from gankernels.bench.declaration import DOUBLE_BACKWARD, FORWARD, FORWARD_BACKWARD, Benchmark, Case
from gankernels.bench.rows import read_csv, write_csv
from gankernels.bench.runner import plan
from gankernels.errors import InputError

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "record.py"


@pytest.fixture(scope="module")
def script():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("record", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_mode_of_every_op_is_recorded(script):
    groups = script.chosen("ops")
    for benchmark in script.ALL:
        for mode in benchmark.modes:
            cases = [g.case for g in groups if g.benchmark.op == benchmark.op and g.mode == mode]
            sizes = [math.prod(case.shape) for case in benchmark.cases]
            assert min(sizes) in [math.prod(case.shape) for case in cases]
            assert any(case.quick for case in cases) or not any(case.quick for case in benchmark.cases)
    # So that twice as many ops stay under twenty minutes.
    assert len(groups) < 80


def test_cases_are_spread(script):
    cases = [Case(str(n), (n,), quick=n == 5) for n in (4, 2, 5, 9, 1, 3)]
    assert [case.shape[0] for case in script.spread(cases, 3)] == [5, 9, 1]
    assert [case.shape[0] for case in script.spread(cases, 4)] == [4, 5, 9, 1]
    assert script.spread(cases, 9) == cases


def test_rows_are_merged(script):
    old = [*group(op="scale"), *group(op="scale", mode="forward"), *group(op="shift")]
    again = [*group(scaled(TIMES, 2), op="scale", mode="forward"), *group(op="scale", mode="double backward")]
    rows = script.merged(old, again)
    assert [(row["op"], row["mode"]) for row in rows[:: len(TIMES)]] == [
        ("scale", "forward+backward"),
        ("scale", "forward"),
        ("scale", "double backward"),
        ("shift", "forward+backward"),
    ]
    assert rows[: len(TIMES)] == old[: len(TIMES)]
    assert rows[len(TIMES) : 2 * len(TIMES)] == again[: len(TIMES)]
    assert script.merged([], again) == again


def test_a_part_is_measured_alone(script, tmp_path, monkeypatch):
    limits = Ceilings("cpu", copy=[(1.0, 2e10)], gemm={"float32": 1e11}, launch=1e-6, launch_outside=1e-6)
    monkeypatch.setattr(ceilings, "measure", lambda device, dtypes: limits)
    monkeypatch.setattr(script, "_device", lambda: "cpu")
    monkeypatch.setattr("gankernels.bench.providers.compiled", lambda function, mode, _: lambda x, dy: [])
    scale = Benchmark(
        op="scale",
        cases=[Case("layer", (2, 3, 4, 4))],
        inputs=lambda case, rng: [torch.randn(case.shape, generator=rng)],
        stock=lambda case, x: x.exp(),
        ours=lambda case, x, impl: x.exp(),
        impls=["mine"],
        bytes=lambda case, mode, itemsize: case.passes(4, itemsize),
        dtypes=[torch.float32],
        modes=[FORWARD, FORWARD_BACKWARD],
    )
    path = tmp_path / "ops.csv"
    write_csv(path, group(op="shift"))
    assert script.record(path, plan([scale]), memory="system", keep=True, budget_s=0.01) == 0
    rows = read_csv(path)
    assert rows[: len(TIMES)] == group(op="shift")
    mine = [row for row in rows if row["provider"] == "gankernels-mine"]
    assert [row["mode"] for row in mine] == ["forward, system memory", "forward+backward, system memory"]
    # exp keeps its output.
    assert [row["saved_mib"] for row in mine] == ["", f"{2 * 3 * 4 * 4 * 4 / 2**20:.4g}"]
    assert script.record(path, plan([scale]), memory="system", keep=False, budget_s=0.01) == 0
    assert {row["op"] for row in read_csv(path)} == {"scale"}


def test_what_is_not_declared_is_refused(script, capsys):
    for arguments, message in (
        (["rows"], "files: got 'rows', expected some of ops, steps, system-memory"),
        (["--op", "paint"], "--op: got 'paint', expected one of bias_act, "),
        (["--op", "spectral_norm", "--mode", DOUBLE_BACKWARD], "--op: got 'spectral_norm'"),
        (["--position", "nowhere"], "--mode, --position: got ones that no op has"),
    ):
        with pytest.raises(InputError, match=f"^{message}"):
            script.main([*arguments, "--list"])
    assert script.main(["ops", "--op", "bias_act", "--mode", DOUBLE_BACKWARD, "--position", "64 PX", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    name = "ops: bias_act, StyleGAN2-256 D 64 px, {}, double backward"
    assert lines == [name.format("float32"), name.format("bfloat16")]
