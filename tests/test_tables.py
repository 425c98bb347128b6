from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from made_up_rows import TIMES, group

from gankernels.bench.rows import write_csv
from gankernels.errors import InputError

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "tables.py"


def test_the_tables_say_what_the_figures_say():
    result = subprocess.run([sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True)
    assert result.returncode == 0, f"{result.stdout}{result.stderr}run `make tables`"


@pytest.fixture(scope="module")
def tables():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("tables", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def root(tmp_path):
    """A repository with figures of one CPU and a marker for every table."""
    results = tmp_path / "benchmarks" / "results" / "test-cpu"
    (tmp_path / "docs" / "ops").mkdir(parents=True)
    results.mkdir(parents=True)
    lost = TIMES | {"gankernels-cpu": 12.5}
    wrong = TIMES | {"gankernels-cpu": "wrong: dx is off by 3.1"}
    write_csv(
        results / "ops.csv",
        [
            *group(),
            *group(lost, position="Net G block 2"),
            *group(dtype="bfloat16"),
            *group(wrong, dtype="bfloat16", position="Net G block 2"),
            *group(mode="forward"),
        ],
    )
    write_csv(results / "ops-system-memory.csv", group(mode="forward+backward, system memory"))
    step = {"eager": 80.0, "eager-best": 64.0, "compile": "error: Unsupported", "gankernels-auto": 32.0}
    steps = group(step, op="d_step", position="net-32", shape="64x3x32x32", mode="step")
    dcgan = {"position": "dcgan-32", "shape": "16x3x32x32", "mode": "step"}
    steps += group({"eager": 50.0, "gankernels-auto": 40.0}, op="d_step", **dcgan)
    steps += group({"eager": 70.0, "compile": 60.0, "gankernels-auto": 40.0}, op="g_step", **dcgan)
    # No recipe: DCGAN is trained without a penalty.
    steps += group({"eager": 50.0, "gankernels-auto": 10.0}, op="d_step_r1", **dcgan)
    block = group(step, op="up_block", position="net-32 block 1", shape="4x8x4x4", mode="step")
    write_csv(results / "steps.csv", [*steps, *block])
    (tmp_path / "README.md").write_text(
        "# title\n" + "".join(map(marker, ("summary", "steps", "iterations", "blocks", "gpu"))) + "end\n"
    )
    (tmp_path / "docs" / "ops" / "scale.md").write_text(marker("scale"))
    (tmp_path / "docs" / "ops" / "shift.md").write_text(marker("shift"))
    (tmp_path / "docs" / "benchmarking.md").write_text(marker("summary"))
    return tmp_path


def marker(name: str) -> str:
    return f"<!-- table: {name} -->\nold\n<!-- end of table -->\n"


def test_tables_are_written_once(tables, root):
    assert tables.main(["--check", "--root", str(root)]) == 1
    assert "old" in (root / "README.md").read_text(), "--check must not write"
    assert tables.main(["--root", str(root)]) == 0
    assert tables.main(["--check", "--root", str(root)]) == 0
    readme = (root / "README.md").read_text()
    assert "old" not in readme
    assert readme.startswith("# title\n")
    assert readme.endswith("end\n")


def test_what_the_tables_say(tables, root):
    assert tables.main(["--root", str(root)]) == 0
    readme = (root / "README.md").read_text()
    assert "Test CPU, 2 threads, avx2, torch 2.13.0+cpu, commit abc1234, 2026-01-02:" in readme
    link = "[scale](docs/ops/scale.md)"
    # The geometric mean of 2 and 0.8, and of 2.4 and 0.96; the floors are 40% and 16%.
    assert f"| {link} | float32 | 2 | **1.26x** (0.80 to 2.00) | **1.52x** (0.96 to 2.40) | 25% | at 1 |" in readme
    assert f"| {link} | bfloat16 | 2, 1 of our rows wrong or failed | **2.00x** (2.00 to 2.00) |" in readme
    assert "| d_step | net-32 | 64 | step | float32 | 800 | 1000 (eager-best) | **2000** | 2.00x |" in readme
    of_iteration = "| dcgan-32 | 16 | 1 | float32 | 133.3 | 145.5 | **200** | 1.38x | 12.50 and 12.50 |"
    assert readme.count("| dcgan-32 | 16 | 1 |") == readme.count(of_iteration) == 1
    of_block = "| up_block | net-32 block 1 | 4x8x4x4 | step | float32 | 64.0 (eager-best) | **32.0 (auto)** | 2.00x"
    assert f"{of_block} | 2.50x | 6% | 12.5 / 12.5 (1.00x) |" in readme
    assert readme.count("net-32 block 1") == 1, "not among the steps"
    assert "GPU figures have not been measured yet." in readme
    assert "[scale](../docs/ops/scale.md)" in (root / "docs" / "benchmarking.md").read_text()
    page = (root / "docs" / "ops" / "scale.md").read_text()
    same = "| Net G block 1 | 8x16x4x4 | {} | float32 | 10.0 (eager-best) | **5.00 (cpu)** | 2.00x | 2.40x | 40% |"
    for mode in ("forward", "forward+backward", "forward+backward, system memory"):
        assert same.format(mode) in page
    assert "| **wrong: dx is off by 3.1** |" in page
    assert "Not measured yet." in (root / "docs" / "ops" / "shift.md").read_text()


def test_figures_of_a_gpu(tables, root):
    folder = root / "benchmarks" / "results" / "test-gpu"
    folder.mkdir()
    ours = {"eager": 2.0, "gankernels-cuda": 0.5, "gankernels-triton": 1.0}
    write_csv(folder / "ops.csv", group(ours, device="Test GPU", driver="580.1"))
    assert tables.main(["--root", str(root)]) == 0
    readme = (root / "README.md").read_text()
    assert "have not been measured" not in readme
    assert "Test GPU, driver 580.1, torch" in readme
    assert "| float32 | 1 | **4.00x** (4.00 to 4.00) |" in readme.split("table: gpu")[1]
    assert "Test GPU" not in readme.split("table: gpu")[0]
    page = (root / "docs" / "ops" / "scale.md").read_text()
    assert "**0.500 (cuda)** | 4.00x" in page
    assert "**1.00 (triton)** | 2.00x" in page


def test_what_the_runs_learnt(tables, root):
    columns = (
        "preset,options,data,provider,seed,images,processor_seconds,accuracy,classifier_test_accuracy,lowest_class,"
    )
    columns += (
        "lowest_class_accuracy,seen_per_class_min,seen_per_class_max,fd,fd_features,fd_floor,samples,g_parameters,"
    )
    columns += "d_parameters,precision,device,driver,torch,commit,date"
    rows = [columns]
    for preset, provider, seed, accuracy, fd in (
        ("biggan-32", "gankernels", 0, 0.5, 20),
        ("biggan-32", "gankernels", 1, 0.6, 30),
        ("biggan-32", "stock", 0, 0.7, 10),
        ("dcgan-32", "gankernels", 0, 0.8, 12.34),
    ):
        rows.append(
            f"{preset},--batch 8,fashion-mnist,{provider},{seed},20000,90,{accuracy},0.9103,shirt,0.25,150,300,{fd},"
            "classifier,0.86,2048,427329,149041,fp32,Test CPU,,2.13.0+cpu,abc1234,2026-01-02"
        )
    folder = root / "benchmarks" / "results" / "quality"
    folder.mkdir()
    (folder / "test-cpu.csv").write_text("\n".join(rows) + "\n")
    (root / "docs" / "models.md").write_text(marker("quality") + marker("parity"))
    assert tables.main(["--root", str(root)]) == 0
    quality, parity = (root / "docs" / "models.md").read_text().split("table: parity")
    line = (
        "| `dcgan-32` | 427,329 and 149,041 | 20,000 | 1.5 | **0.80** (real: 0.91) | shirt, 0.25 | 150 to 300 of 2,048"
    )
    assert f"{line} | **12.3** (real: 0.9), classifier |" in quality
    assert "biggan-32" not in quality
    assert (
        "| `biggan-32` | 20,000 | ours | 2 | **0.550** (0.500 to 0.600) | **25.0** (20.0 to 30.0), classifier |"
        in parity
    )
    assert "| `biggan-32` | 20,000 | stock | 1 | **0.700** (0.700 to 0.700) |" in parity
    assert "dcgan-32" not in parity


def test_a_marker_without_a_table_is_an_error(tables, root):
    (root / "README.md").write_text(marker("no such op"))
    with pytest.raises(
        InputError,
        match=r"^README\.md: got table 'no such op', expected one of blocks, gpu, iterations, losses, .*steps",
    ):
        tables.main(["--root", str(root)])


def test_without_figures_nothing_is_touched(tables, tmp_path, capsys):
    (tmp_path / "README.md").write_text(marker("summary"))
    assert tables.main(["--root", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "nothing to do: no figures in benchmarks/results\n"
    assert "old" in (tmp_path / "README.md").read_text()


def test_the_profile_of_a_step(tables):
    stamp = {"device": "a CPU", "driver": "", "torch": "2.13.0", "commit": "abc1234", "date": "2026-11-22"}
    step = {"step": "d_step", "network": "net-32", "batch": "4", "dtype": "float32"}
    parts = [("convolution, forward", 3, 60, 12, 45), ("between the ops", 0, 39.5, 0, 0), ("bias_act", 2, 0.5, 0, 0.1)]
    names = ("part", "calls", "ms", "gflop", "floor_ms")
    rows = [stamp | step | dict(zip(names, map(str, part), strict=True)) for part in parts]
    text = tables.profile_table(rows)
    assert "| d_step | net-32, batch 4 | **the whole step** | 5 | 100 | 100.0% | 12 | 120 | 45% |" in text
    assert "| d_step | net-32, batch 4 | convolution, forward | 3 | 60 | 60.0% | 12 | 200 | 75% |" in text
    assert "| d_step | net-32, batch 4 | between the ops |  | 39.5 | 39.5% |  |  |  |" in text
    assert "bias_act" not in text
    assert tables.profile_table([]) == "Not measured yet.\n"
