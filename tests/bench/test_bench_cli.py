from __future__ import annotations

import io
import json
import os

import pytest
import torch

from gankernels import cli as gankernels
from gankernels.bench import Benchmark, Case, ceilings, cli, providers, runner
from gankernels.bench.ceilings import Ceilings
from gankernels.bench.rows import COLUMNS, read
from gankernels.bench.table import show

CEILINGS = Ceilings("cpu", [(1e6, 20e9)], {"float32": 1e11, "bfloat16": 1e11}, launch=1e-6, launch_outside=1e-6)


def scale(op: str = "scale", factor: float = 2.0) -> Benchmark:
    return Benchmark(
        op=op,
        cases=[Case("network A, layer 1", (4, 2, 4, 4), quick=True), Case("network B, layer 2", (4, 2, 8, 8))],
        inputs=lambda case, rng: [torch.randn(case.shape, generator=rng)],
        stock=lambda case, x: 2 * x,
        ours=lambda case, x, impl: factor * x,
        impls=["reference"],
        bytes=lambda case, mode, itemsize: case.passes(2, itemsize),
    )


@pytest.fixture
def bench(monkeypatch, capsys):
    """(arguments) -> (exit code, stdout, stderr), over declarations of the test's own."""
    declared = {"ops": [scale()], "steps": []}
    monkeypatch.setattr(cli, "_benchmarks", lambda what: declared[what])
    monkeypatch.setattr(ceilings, "measure", lambda device, dtypes: CEILINGS)
    monkeypatch.setattr(providers, "compiled", lambda function, mode, compile_mode: providers.in_mode(function, mode))
    monkeypatch.setattr(runner, "keep_freed_memory", lambda: True)

    def run(*argv, benchmarks=None):
        if benchmarks is not None:
            declared["ops"] = benchmarks
        code = gankernels.main(["bench", "--device", "cpu", "--repeats", "1", *map(str, argv)])
        return code, *capsys.readouterr()

    return run


def test_everything_is_written(bench, tmp_path):
    files = [tmp_path / f"out.{suffix}" for suffix in ("json", "csv", "html")]
    options = [text for file in files for text in (f"--{file.suffix[1:]}", file)]
    code, out, err = bench("--quick", *options)
    assert code == 0
    rows = read(files[0])
    assert rows == read(files[1])
    assert len(rows) == 2 * 4
    assert {row["position"] for row in rows} == {"network A, layer 1"}
    assert json.loads(files[0].read_text())["ceilings"] == json.loads(json.dumps(CEILINGS.as_dict()))
    assert files[2].read_text().startswith("<!doctype html>")
    assert "copy, 1 MiB: 20 GB/s" in out
    assert out.count("gankernels-reference") == 2
    assert "[1/2] scale, network A, layer 1, bfloat16, forward+backward" in err
    assert f"written to {files[0]}, {files[1]}, {files[2]}" in err


def planned(*args, quick=False, **asked) -> list[str]:
    return [str(group) for group in runner.plan(cli.select([scale(), scale("other")], *args, **asked), quick)]


def test_only_what_is_asked_for():
    assert len(planned()) == 2 * 2 * 2 * 2
    assert len(planned(ops=["scale"])) == 2 * 2 * 2
    assert planned(ops=["scale"], position="NETWORK b", modes=["forward"]) == [
        "scale, network B, layer 2, float32, forward",
        "scale, network B, layer 2, bfloat16, forward",
    ]
    assert planned(dtypes=["float16"], modes=["forward"], quick=True) == [
        "scale, network A, layer 1, float16, forward",
        "other, network A, layer 1, float16, forward",
    ]
    assert [benchmark.impls for benchmark in cli.select([scale()], impls=["cuda"])] == [["cuda"]]


def test_a_wrong_kernel_is_a_failed_check(bench):
    code, out, _ = bench("--quick", benchmarks=[scale(factor=2.5)])
    assert code == 1
    assert "wrong: result 0" in out


def test_interrupted_it_keeps_what_it_has(bench, monkeypatch, tmp_path):
    measure = runner.carry_out
    calls = []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measure(*args)

    monkeypatch.setattr(runner, "carry_out", interrupted)
    code, out, err = bench("--csv", tmp_path / "a.csv", "--html", tmp_path / "a.html")
    assert code == 130
    assert len(read(tmp_path / "a.csv")) == 4
    assert (tmp_path / "a.html").exists()
    assert "gankernels-reference" in out
    assert "interrupted after 1 of 8 groups" in err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--op", "nothing"], "--op: got 'nothing', expected one of scale"),
        (["--position", "C"], "--position: got 'C', expected a part of one of: network A, layer 1; network B"),
        (["--mode", "step"], "--mode: got 'step', expected one of forward, forward+backward"),
        (["--mode", "sideways"], "invalid choice: 'sideways'"),
        (["--dtype", "int8"], "invalid choice: 'int8'"),
        (["--device", "tpu"], "device: got 'tpu', expected "),
        (["--repeats", "0"], "got '0', expected a whole number of at least 1"),
        (["--threads", "many"], "got 'many', expected a whole number"),
        (["everything"], "invalid choice: 'everything'"),
        (["--json", "{tmp}"], "--json: got {tmp}, expected a file, not a folder"),
        (["--csv", "{tmp}/none/a.csv"], "--csv: got {tmp}/none/a.csv, expected a folder {tmp}/none that exists"),
        (["--csv", "{tmp}/a", "--json", "{tmp}/a"], "twice, expected a file of its own"),
    ],
)
def test_bad_arguments_are_one_line(bench, tmp_path, monkeypatch, argv, message):
    monkeypatch.setattr(ceilings, "measure", lambda *args: pytest.fail("measured before the arguments were checked"))
    code, out, err = bench(*(text.replace("{tmp}", str(tmp_path)) for text in argv))
    assert code == 2
    assert out == ""
    assert err.startswith("gankernels: error: ")
    assert message.replace("{tmp}", str(tmp_path)) in err
    assert err.count("\n") == 1


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_to(bench, tmp_path):
    tmp_path.chmod(0o500)
    assert bench("--csv", tmp_path / "a.csv")[0] == 2


def test_threads_are_set(bench):
    before = torch.get_num_threads()
    try:
        bench("--quick", "--threads", 2, "--dtype", "float32")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_compare_is_passed_on(capsys):
    with pytest.raises(SystemExit, match="0"):
        gankernels.main(["bench", "compare", "--help"])
    assert "threshold" in capsys.readouterr().out


def test_help_says_what_quick_leaves_out(capsys):
    with pytest.raises(SystemExit, match="0"):
        gankernels.main(["bench", "--help"])
    assert "no double backward" in " ".join(capsys.readouterr().out.split())


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def rows():
    def row(provider: str, **fields: str) -> dict[str, str]:
        known = {
            "op": "scale",
            "position": "network A, layer 1",
            "shape": "64x2x4x4",
            "dtype": "float32",
            "mode": "step",
        }
        figures = {
            "ms": "2.0000",
            "ms_p20": "1.9",
            "ms_p80": "2.1",
            "floor_share": "0.505",
            "floor_kind": "launch 1 us",
        }
        return dict.fromkeys(COLUMNS, "") | known | figures | {"provider": provider, "correct": "yes"} | fields

    failed = {"ms": "", "ms_p20": "", "ms_p80": "", "floor_share": "", "correct": "error: " + "no such kernel " * 12}
    return [row("eager"), row("compile", **failed), row("gankernels-cpu", ms="1.0000", impl="cpu")]


def test_a_table_for_a_terminal(rows, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    show(rows, out)
    text = out.getvalue()
    assert "\x1b[1mgankernels-cpu" in text
    assert "\x1b[1meager" not in text
    assert "64,000" in text
    assert text.count("network A, layer 1") == 1
    assert "…" not in text


@pytest.mark.parametrize("out", [io.StringIO(), Terminal()])
def test_nothing_is_cut_off(rows, monkeypatch, out):
    monkeypatch.setenv("COLUMNS", "60")
    show(rows, out)
    text = out.getvalue()
    assert "\x1b" not in text
    assert "no such kernel " * 11 in text
    assert text.count("network A, layer 1") == 3
    assert "51%" in text or "50%" in text
    assert "32,000" in text
