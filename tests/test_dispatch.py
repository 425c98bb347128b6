from __future__ import annotations

import logging
import os
import subprocess
import sys

import planted
import pytest
import torch
from planted import KINDS, plant
from torch._dynamo.testing import CompileCounter

import gankernels
from gankernels import _native, dispatch, verdicts
from gankernels.cli import main
from gankernels.errors import ImplementationUnavailable, InputError
from gankernels.verdicts import Verdict
from implementations import needs_extension

OP = "conditional_batch_norm"
CPU = torch.device("cpu")


def write(op: str, **of_size: Verdict) -> None:
    verdicts.write(CPU, {op: {"float32": of_size}})
    dispatch.forget()


def call(**keywords):
    return gankernels.ops.conditional_batch_norm(
        torch.randn(2, 3, 4, 4), torch.ones(2, 3), torch.zeros(2, 3), **keywords
    )


def run(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=False
    )


def test_the_call_wins_over_the_block_and_the_block_over_the_process(monkeypatch):
    monkeypatch.setattr(dispatch, "_environment", "reference")
    assert dispatch.choose(OP, "cpu") == ("reference", "forced by GANKERNELS_IMPL")
    with gankernels.use("triton"):
        assert dispatch.choose(OP, "cpu") == ("triton", "forced by gankernels.use")
        assert dispatch.choose(OP, "cpu", "reference") == ("reference", "forced by the call's impl=")
        with gankernels.use(None):
            assert dispatch.choose(OP, "cpu").impl == "reference"
    assert dispatch.choose(OP, "cpu").impl == "reference"


def test_use_is_undone_by_an_exception():
    with pytest.raises(ZeroDivisionError), gankernels.use("reference"):
        raise ZeroDivisionError
    assert dispatch._forced is None


def test_a_backward_runs_on_the_implementation_of_its_forward():
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    with gankernels.use("triton"):
        y = gankernels.ops.conditional_batch_norm(x, torch.ones(2, 3), torch.zeros(2, 3))
    assert "triton" in y.grad_fn.name()
    y.sum().backward()


@pytest.mark.parametrize("name", ["fast", "", "CPU"])
def test_unknown_names(name):
    with pytest.raises(InputError, match="expected one of reference, library, cpu, triton, cuda"), gankernels.use(name):
        pass
    with pytest.raises(InputError, match="expected one of reference, library, cpu, triton, cuda"):
        call(impl=name)


def test_what_an_op_does_not_have_is_forced_by_a_call_alone(fresh, monkeypatch, caplog):
    monkeypatch.setitem(
        dispatch._registry, "made_up", {"reference": lambda device: None, "library": lambda device: None}
    )
    x = torch.zeros(1)
    with caplog.at_level(logging.WARNING, "gankernels"), gankernels.use("triton"):
        assert dispatch.choose("made_up", x).impl == "library"
    assert not caplog.records, "it is no fall-back"
    with pytest.raises(ImplementationUnavailable, match="made_up has no triton implementation"):
        dispatch.choose("made_up", x, "triton")


def test_a_fallback_is_logged_once_and_named(fresh, monkeypatch, caplog):
    monkeypatch.setattr(_native, "why_no_cpu", "not built: a test says so")
    with caplog.at_level(logging.WARNING, "gankernels"):
        call()
        call()
    (record,) = caplog.records
    assert record.getMessage() == f"{OP} runs on reference for cpu tensors (cpu: not built: a test says so)"
    with pytest.raises(ImplementationUnavailable, match="not built: a test says so"):
        call(impl="cpu")
    assert gankernels.doctor()["ops"][OP]["cpu"]["reference"] == "chosen: cpu: not built: a test says so"


@pytest.mark.skipif(_native.extension is None, reason="the extension is not built")
@pytest.mark.parametrize(
    ("change", "op"),
    [
        (("bias_act_forward(Tensor x,", "bias_act_forward(Tensor x, int more,"), "bias_act_forward"),
        (
            (
                "TORCH_LIBRARY(gankernels, m) {",
                'TORCH_LIBRARY(gankernels, m) {\n  m.def("new_op(Tensor x) "\n"-> Tensor");',
            ),
            "new_op",
        ),
    ],
    ids=["changed", "added"],
)
def test_an_extension_older_than_the_sources_is_not_used(monkeypatch, tmp_path, change, op):
    assert _native._SCHEMAS_FILE.exists()
    stale = tmp_path / "ops.cpp"
    stale.write_text(_native._SCHEMAS_FILE.read_text().replace(*change))
    assert _native._load() == (_native.extension, None)
    monkeypatch.setattr(_native, "_SCHEMAS_FILE", stale)
    extension, why_not = _native._load()
    assert extension is None
    assert why_not == f"the extension was built from other sources, its {op} is not theirs: install gankernels again"
    monkeypatch.setattr(_native, "extension", None)
    monkeypatch.setattr(_native, "why_no_cpu", why_not)
    assert gankernels.doctor()["extension"]["why_not"] == why_not
    monkeypatch.setattr(_native, "_SCHEMAS_FILE", tmp_path / "installed without sources")
    assert _native._load()[1] is None


def test_an_extension_of_another_torch_is_not_loaded(monkeypatch):
    monkeypatch.setattr(_native, "build", _native.build | {"torch": "1.13.0", "left_out": {}})
    extension, why_not = _native._load()
    assert extension is None
    assert "built for torch 1.13.0" in why_not


def test_every_op_has_a_reference():
    assert OP in dispatch.ops()
    for op in dispatch.ops():
        assert dispatch.unavailable(op, "reference", "cpu") is None


def test_environment_variable():
    code = "import gankernels; print(gankernels.dispatch.choose('conditional_batch_norm', 'cpu').impl)"
    assert run(code, GANKERNELS_IMPL="reference").stdout.strip() == "reference"


def test_import_needs_torch_and_numpy_alone():
    code = """
import sys
import gankernels
print(sorted({"triton", "PIL", "rich", "tyro", "scipy", "safetensors", "tensorboard", "sklearn"} & set(sys.modules)))
"""
    result = run(code)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


# ---- What tune found ----

WRONG = {"cuda": "result 1: error 1.00e-02 on values up to 3.00e+00"}


def test_the_cache_decides_by_size_and_dtype(fresh, monkeypatch):
    plant(monkeypatch)
    write(
        planted.OP,
        small=Verdict("cpu", {"cpu": 1, "cuda": 2}, {}),
        medium=Verdict("triton", {"triton": 1, "cuda": 2}, {}),
        large=Verdict("cuda", {"cuda": 1, "cpu": 2}, {}),
    )
    empty = torch.empty(0)
    found = {numel: dispatch.choose(planted.OP, empty, numel=numel).impl for numel in (0, 2**19, 2**19 + 1, 2**22 + 1)}
    assert found == {0: "cpu", 2**19: "cpu", 2**19 + 1: "triton", 2**22 + 1: "cuda"}
    choice = dispatch.choose(planted.OP, torch.empty(8))
    assert choice.reason.startswith("fastest for small float32, tuned on 20")
    assert dispatch.choose(planted.OP, torch.empty(8).double()) == ("cuda", "default on cpu")
    assert dispatch.choose(planted.OP, torch.empty(8), "reference").impl == "reference"
    with gankernels.use("triton"):
        assert dispatch.choose(planted.OP, torch.empty(8)).impl == "triton"


def test_what_is_wrong_is_no_fallback_either(fresh, monkeypatch, caplog):
    plant(monkeypatch)
    wrong = WRONG | {"triton": "RuntimeError: no kernel image"}
    write(
        planted.OP, small=Verdict(None, {}, wrong), medium=Verdict("cuda", {}, wrong), large=Verdict("cpu", {}, wrong)
    )
    with caplog.at_level(logging.WARNING, "gankernels"):
        for numel in (1, 2**20, 2**23, 1):
            assert dispatch.choose(planted.OP, torch.empty(1), numel=numel).impl == "cpu"
    (record,) = caplog.records
    assert record.getMessage() == (
        "planted runs on cpu for cpu tensors (cuda: wrong on this machine in float32: result 1: error 1.00e-02 on "
        "values up to 3.00e+00; triton: wrong on this machine in float32: RuntimeError: no kernel image)"
    )


def test_a_choice_that_cannot_run_any_more_is_not_taken(fresh, monkeypatch):
    plant(monkeypatch)
    write(planted.OP, small=Verdict("triton", {"triton": 1}, WRONG))
    monkeypatch.setattr(dispatch, "machine_lacks", lambda impl, device: "gone" if impl == "triton" else None)
    dispatch.forget()
    assert dispatch.choose(planted.OP, torch.empty(1)).impl == "cpu"


@needs_extension
def test_doctor_tells_of_the_cache(fresh, monkeypatch, capsys):
    assert gankernels.doctor()["verdicts"]["state"][verdicts.device_name(CPU)] == "none: run `gankernels tune`"
    of_size = {
        "small": Verdict("reference", {"cpu": 2, "reference": 1}, {}),
        "large": Verdict("cpu", {"cpu": 1, "reference": 2}, {}),
    }
    wrong = {"small": Verdict("reference", {}, {"cpu": "result 1: error 1e-2"})}
    verdicts.write(CPU, {OP: {"float32": of_size, "bfloat16": wrong}})
    dispatch.forget()
    facts = gankernels.doctor()
    assert facts["verdicts"]["path"] == str(verdicts.path())
    assert facts["elsewhere"][OP]["cpu"] == {"float32": {"small": "reference"}, "bfloat16": {"small": "reference"}}
    main(["doctor"])
    text = capsys.readouterr().out
    assert f"{verdicts.device_name(CPU)}: tuned on 20" in text
    assert "chosen: fastest for large float32, tuned on 20" in text
    assert "; wrong on this machine: bfloat16: result 1: error 1e-2" in text
    assert "bfloat16: reference for small" in text


def test_doctor_says_why_a_cache_is_ignored(fresh, monkeypatch, capsys):
    write(OP, small=Verdict("cpu", {}, {}))
    monkeypatch.setattr(verdicts, "__version__", "99.0")
    dispatch.forget()
    main(["doctor"])
    assert f"ignored: tuned with gankernels {gankernels.__version__}, here is 99.0" in capsys.readouterr().out


@pytest.mark.parametrize(("dynamic", "chosen", "graphs"), [(False, [1, 2, 3, 3], 4), (True, [3, 3, 3, 3], 1)])
def test_compile_fullgraph_with_a_verdict(fresh, monkeypatch, dynamic, chosen, graphs):
    """Static shapes are chosen for exactly; dynamic ones get one graph, without a guard on their size."""
    plant(monkeypatch)
    write(
        planted.OP,
        **{size: Verdict(impl, {}, {}) for size, impl in zip(verdicts.SIZE_CLASSES, KINDS, strict=True)},
    )
    torch._dynamo.reset()
    counter = CompileCounter()

    @torch.compile(fullgraph=True, backend=counter, dynamic=dynamic)
    def step(x):
        return x + KINDS[dispatch.choose(planted.OP, x).impl]

    sizes = (4, 2**19 + 1, 2**22 + 1, 2**22 + 2)
    assert [int(step(torch.zeros(n, dtype=torch.float32))[0]) for n in sizes] == chosen
    assert counter.frame_count == graphs


def test_a_compiled_layer_follows_the_verdict(fresh):
    write(OP, small=Verdict("reference", {}, {}))
    torch._dynamo.reset()
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    compiled = torch.compile(gankernels.ops.conditional_batch_norm, fullgraph=True, backend="aot_eager")
    y = compiled(x, torch.ones(2, 3), torch.zeros(2, 3))
    torch.testing.assert_close(y, gankernels.ops.conditional_batch_norm(x, torch.ones(2, 3), torch.zeros(2, 3)))
    y.sum().backward()


def test_nothing_is_read_at_import(tmp_path):
    (tmp_path / "verdicts.json").write_text("damaged")
    code = """
import torch, gankernels
print("imported", flush=True)
gankernels.dispatch.choose("conditional_batch_norm", torch.zeros(2, 3, 4, 4))
"""
    result = run(code, GANKERNELS_CACHE=str(tmp_path))
    assert result.stdout.strip() == "imported"
    assert result.stderr.count("it is damaged") == 1


def test_what_was_to_be_built_was_built():
    """Without the kernels the references run, and the tests pass; a build that failed must not pass for that."""
    left_out = _native.build["left_out"]
    assert [why for why in left_out.values() if "the native build failed" in why] == []
    assert _native.extension is not None or "cpu" in left_out
