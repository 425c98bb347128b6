from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest
import torch

import gankernels
from gankernels import _native, dispatch
from gankernels.errors import ImplementationUnavailable, InputError

OP = "conditional_batch_norm"


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
    with pytest.raises(InputError, match="expected one of reference, cpu, triton, cuda"), gankernels.use(name):
        pass
    with pytest.raises(InputError, match="expected one of reference, cpu, triton, cuda"):
        call(impl=name)


def test_a_fallback_is_logged_once_and_named(monkeypatch, caplog):
    monkeypatch.setattr(_native, "why_no_cpu", "not built: a test says so")
    monkeypatch.setattr(dispatch, "_logged", set())
    with caplog.at_level(logging.WARNING, "gankernels"):
        call()
        call()
    (record,) = caplog.records
    assert record.getMessage() == f"{OP} runs on reference for cpu tensors (cpu: not built: a test says so)"
    with pytest.raises(ImplementationUnavailable, match="not built: a test says so"):
        call(impl="cpu")
    assert gankernels.doctor()["ops"][OP]["cpu"]["reference"] == "chosen: cpu: not built: a test says so"


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
