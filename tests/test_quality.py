from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from gankernels.errors import InputError
from gankernels.metrics import classifier, evaluation

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "quality.py"
TINY = "--images 16 --batch 8 --precision fp32 --g.ch 2 --d.ch 2 --tick.grid-columns 1 --ema.statistics-images 8"


@pytest.fixture
def script(tmp_path, monkeypatch):
    """The script as a module, with a recipe of two steps, and folders of its own."""
    spec = importlib.util.spec_from_file_location("quality", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RECIPES", {"dcgan-32": TINY, "r3gan-32": TINY})
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    monkeypatch.setenv("GANKERNELS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(evaluation, "why_no_efficientnet", lambda: "it is not installed")
    # A judge that has learnt nothing: what it says is not what is tested here.
    monkeypatch.setattr(classifier, "_fit", lambda *_: None)
    threads = torch.get_num_threads()
    yield module
    torch.set_num_threads(threads)


@pytest.fixture
def arguments(tmp_path):
    data = ["--data", "synthetic:32x3x120", "--samples", "24"]
    return ["dcgan-32", *data, "--runs", str(tmp_path / "runs"), "--threads", "1"]


def test_a_run_is_a_row_and_a_block_of_the_sheet_and_none_is_lost(script, arguments, tmp_path):
    assert script.main(arguments) == 0
    (path,) = (tmp_path / "results").glob("*.csv")
    (row,) = script.read_csv(path)
    assert (row["preset"], row["options"], row["provider"], row["seed"]) == ("dcgan-32", TINY, "gankernels", "0")
    assert (row["images"], row["threads"], row["samples"], row["fd_features"]) == ("16", "1", "24", "classifier")
    assert 0 <= float(row["accuracy"]) <= 1
    assert 0 <= int(row["seen_per_class_min"]) <= 8 <= int(row["seen_per_class_max"]) <= 24
    assert float(row["processor_seconds"]) > 0
    assert int(row["g_parameters"]) == sum(
        p.numel() for p in script.load_generator(_run(tmp_path)).generator.parameters()
    )

    with pytest.raises(InputError, match="in it, expected none of this run: remove it"):
        script.main(arguments)
    assert script.main([*arguments, "--provider", "stock"]) == 0
    first, second = script.read_csv(path)
    assert (first, second["provider"]) == (row, "stock")
    _check_the_sheet(script, arguments, tmp_path / "sheet.png")
    again = {**row, "accuracy": "1.0000"}
    assert script.merged([first, second], again) == [again, second]


def test_what_cannot_be_run_is_refused(script, arguments, tmp_path):
    with pytest.raises(InputError, match="--provider: got stock for r3gan-32, expected a recipe without a penalty"):
        script.main(["r3gan-32", "--provider", "stock"])
    path = tmp_path / "rows.csv"
    path.write_text("preset,fd\nbiggan-32,1.0\n")
    with pytest.raises(InputError, match=r"rows\.csv, expected whole rows, with the columns"):
        script.read_csv(path)
    assert path.read_text() == "preset,fd\nbiggan-32,1.0\n"


def test_an_unknown_recipe_is_one_line():
    result = subprocess.run([sys.executable, str(SCRIPT), "stylegan-32"], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stdout == ""
    expected = "quality: error: recipe: got 'stylegan-32', expected one of biggan-32, r3gan-32, wgan-gp-32, dcgan-32"
    assert result.stderr.splitlines() == [expected]


def _check_the_sheet(script, arguments: list[str], sheet: Path) -> None:
    assert script.main([*arguments, "--sheet", str(sheet)]) == 0
    blocks, rows, columns, side = 2, 3, 5, 64
    with Image.open(sheet) as image:
        assert image.height == 30 + rows * side
        assert image.width > blocks * columns * side


def _run(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "dcgan-32-synthetic-32x3x120-gankernels-16-seed0"
