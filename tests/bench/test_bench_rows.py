from __future__ import annotations

import csv
import json

import pytest

from gankernels.bench.ceilings import Ceilings
from gankernels.bench.rows import COLUMNS, read, read_csv, read_json, stamp, write_csv, write_json
from gankernels.errors import InputError


def test_the_stamp():
    found = stamp("cpu")
    assert "threads" in found["device"]
    assert set(found) == set(COLUMNS[-7:])
    assert found["commit"] == "" or len(found["commit"]) >= 7


@pytest.fixture
def rows():
    return [
        dict.fromkeys(COLUMNS, "") | {"op": "a, b", "ms": "1.5", "correct": 'error: "x"'},
        dict.fromkeys(COLUMNS, "7"),
    ]


@pytest.mark.parametrize(("write", "suffix"), [(write_csv, ".csv"), (write_json, ".json")])
def test_rows_come_back_as_they_were(rows, tmp_path, write, suffix):
    path = tmp_path / f"rows{suffix}"
    write(path, rows)
    assert read(path) == rows
    write(path, [])
    assert read(path) == []


def test_files_are_as_others_read_them(rows, tmp_path):
    write_csv(tmp_path / "a.csv", rows)
    with open(tmp_path / "a.csv", newline="") as file:
        assert list(csv.DictReader(file)) == rows
    ceilings = Ceilings("cpu", [(1e6, 20e9)], {"float32": 1e11}, launch=1e-6, launch_outside=1e-6)
    write_json(tmp_path / "a.json", rows, ceilings.as_dict())
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["rows"] == rows
    assert content["ceilings"]["launch"] == 1e-6


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_rubbish_is_refused(rows, tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    (write_csv if suffix == ".csv" else write_json)(path, rows)
    whole = path.read_bytes()
    fewer = whole.replace(b"floor_kind", b"floor")
    for content in (
        whole[: len(whole) // 2],
        whole[:-3],
        b"",
        b"\xff\x00",
        b"[]",
        b'{"rows": [1]}\n',
        b"a,b\n1,2\n",
        fewer,
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"^file: got "):
            (read_csv if suffix == ".csv" else read_json)(path)


def test_files_that_cannot_be(rows, tmp_path):
    for act in (
        lambda: read(tmp_path / "none.csv"),
        lambda: read(tmp_path / "none.txt"),
        lambda: write_csv(tmp_path / "none" / "a.csv", rows),
        lambda: write_json(tmp_path, rows),
    ):
        with pytest.raises(InputError, match=r"^file: got ") as caught:
            act()
        assert "\n" not in str(caught.value)
