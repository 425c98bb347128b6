from __future__ import annotations

import csv
import importlib.util
from pathlib import Path

import pytest

from gankernels.bench.ceilings import Ceilings
from gankernels.bench.steps import CASES, make_case
from gankernels.errors import InputError

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "profile_steps.py"
CEILINGS = Ceilings("cpu", [(1e6, 1e9)], {"float32": 1e12}, launch=0.0, launch_outside=0.0)


@pytest.fixture
def script(monkeypatch, tmp_path):
    """The script as a module, with two small networks of its own."""
    spec = importlib.util.spec_from_file_location("profile_steps", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    cases = [make_case(name, "dcgan-32", 2, loss="non-saturating", ch=4) for name in ("one", "another")]
    kinds = {kind.op: kind for kind in CASES}
    monkeypatch.setattr(module, "CASES", {kinds["d_step"]: cases, kinds["g_step"]: cases[:1]})
    monkeypatch.setattr(module, "NETWORKS", ("one", "another"))
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setattr(module, "keep_freed_memory", lambda: True)
    monkeypatch.setattr(module.ceilings, "measure", lambda device, dtypes: CEILINGS)
    return module


def rows(tmp_path):
    (path,) = tmp_path.glob("*/profile.csv")
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_steps_are_profiled_and_one_again(script, tmp_path):
    assert script.main([]) == 0
    first = rows(tmp_path)
    assert {(row["step"], row["network"]) for row in first} == {
        ("d_step", "one"), ("d_step", "another"), ("g_step", "one"),
    }  # fmt: skip
    assert {row["part"] for row in first if row["step"] == "d_step"} >= {"convolution, forward", "between the ops"}
    assert script.main(["--position", "another"]) == 0
    again = rows(tmp_path)
    kept = [row for row in first if row["network"] == "one"]
    assert [row for row in again if row["network"] == "one"] == kept
    assert len(again) == len(first)


def test_a_network_that_is_not_there_is_named(script):
    with pytest.raises(InputError, match=r"^--position: got 'rubbish', expected a part of one of one, another$"):
        script.main(["--position", "rubbish"])
