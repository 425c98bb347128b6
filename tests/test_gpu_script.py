"""benchmarks/gpu.sh without a GPU: its arguments and refusals, and its runner with fakes on PATH."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu.sh"
STAGES = ["build", "facts", "tests", "bench", "steps", "sanitizer", "tune", "profile"]

pytestmark = pytest.mark.skipif(os.name != "posix", reason="a bash script")


@pytest.fixture
def fakes(tmp_path: Path) -> Path:
    """A folder of programs that come before the system's: nvidia-smi sees a GPU."""
    folder = tmp_path / "fakes"
    folder.mkdir()
    fake(folder, "nvidia-smi", 'case $1 in -L) echo "GPU 0: A Fake (UUID: 0)" ;; *) echo "A Fake, 1.2.3" ;; esac')
    return folder


def fake(folder: Path, name: str, code: str) -> Path:
    program = folder / name
    program.write_text(f"#!/bin/sh\n{code}\n")
    program.chmod(0o755)
    return program


def gpu_sh(*arguments: object, fakes: Path | None = None, cwd: Path | None = None, python: object = sys.executable):
    path = os.pathsep.join([*([str(fakes)] if fakes else []), "/usr/bin", "/bin"])
    environment = os.environ | {"PATH": path, "PYTHON": str(python), "CUDA_VISIBLE_DEVICES": ""}
    command = ["bash", str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False)


def test_help_and_list():
    usage = gpu_sh("--help")
    assert usage.returncode == 0
    assert all(f"\n  {stage} " in usage.stdout for stage in STAGES)
    assert gpu_sh("--list").stdout.split() == STAGES


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "OUT: got nothing, expected a folder"),
        (["out", "bake"], "STAGE: got bake, expected one of build facts"),
        (["out", "--seconds", "soon"], "--seconds: got soon, expected a whole number"),
        (["out", "--archive"], "--archive: got nothing, expected a value"),
        (["--fast", "out"], "got --fast; --help says"),
    ],
)
def test_bad_arguments(arguments, message, tmp_path, fakes):
    result = gpu_sh(*arguments, fakes=fakes, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith(f"gpu.sh: {message}")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_refuses_without_a_gpu(tmp_path, fakes):
    fake(fakes, "nvidia-smi", "echo No devices were found; exit 6")
    result = gpu_sh(tmp_path / "out", fakes=fakes)
    assert result.returncode == 2
    assert result.stderr == f"gpu.sh: no NVIDIA GPU here: neither nvidia-smi nor {sys.executable}'s torch sees one\n"
    assert not (tmp_path / "out").exists()


def test_facts_from_any_folder(tmp_path, fakes):
    result = gpu_sh("out", "facts", "--archive", "out.tar.gz", fakes=fakes, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    out = tmp_path / "out"
    assert (out / "summary.txt").read_text() == result.stdout
    header, line = result.stdout.splitlines()
    assert header.split()[:3] == ["stage", "seconds", "status"]
    assert line.split()[::2][:2] == ["facts", "ok"]
    assert line.endswith("A Fake, 1.2.3")
    assert json.loads((out / "facts/doctor.json").read_text())["versions"]["torch"]
    with tarfile.open(tmp_path / "out.tar.gz") as archive:
        assert "./facts/doctor.json" in archive.getnames()


def statuses(result: subprocess.CompletedProcess) -> list[tuple[str, str, str]]:
    """Stage, status and last line of each."""
    return [(line[:10].strip(), line[19:28].strip(), line[29:].strip()) for line in result.stdout.splitlines()[1:]]


def test_a_stage_that_fails_does_not_stop_the_next(tmp_path, fakes):
    python = fake(fakes, "python", '[ "$4" != ops ] || { echo broken; exit 3; }; echo tuned')
    fake(fakes, "compute-sanitizer", "echo Device not supported; exit 1")
    result = gpu_sh(tmp_path / "out", "bench", "sanitizer", "tune", fakes=fakes, python=python)
    assert result.returncode == 1
    assert statuses(result) == [
        ("bench", "failed", "broken"),
        ("sanitizer", "skipped", "compute-sanitizer does not support this device"),
        ("tune", "ok", "tuned"),
    ]
    again = gpu_sh(tmp_path / "out", "tune", fakes=fakes, python=python)
    assert again.returncode == 0
    assert len(list((tmp_path / "out").glob("tune.before-*/log"))) == 1


def test_a_stage_that_hangs_is_ended(tmp_path, fakes):
    python = fake(fakes, "python", "echo begun; sleep 60")
    result = gpu_sh(tmp_path / "out", "steps", "tune", "--seconds", 2, fakes=fakes, python=python)
    assert result.returncode == 1
    assert statuses(result) == [
        ("steps", "too long", "begun"),
        ("tune", "no time", "the 2 s were used up before it"),
    ]
