from __future__ import annotations

import json

import pytest
from made_up_rows import TIMES, group, scaled

from gankernels.bench import compare
from gankernels.bench.rows import write_csv, write_json
from gankernels.errors import InputError


@pytest.fixture
def run(tmp_path, capsys):
    """(rows of A, rows of B, options) -> (exit code, what was printed)."""

    def run(a, b, *options):
        write_csv(tmp_path / "a.csv", a)
        write_json(tmp_path / "b.json", b)
        code = compare.main([str(tmp_path / "a.csv"), str(tmp_path / "b.json"), *options])
        return code, capsys.readouterr().out

    return run


def test_the_same_twice_is_steady(run):
    code, out = run(group(), group())
    assert code == 0
    assert "4 rows did not move beyond the noise; 0 regressions over 10%" in out
    assert "slower" not in out
    assert "warning" not in out


def test_a_slower_kernel_is_a_regression(run):
    code, out = run(group(), group(TIMES | {"gankernels-cpu": 6.0}))
    assert code == 1
    (line,) = [line for line in out.splitlines() if "REGRESSION" in line]
    assert "gankernels-cpu (cpu channels_last)" in line
    assert "5 -> 6 ms (+20.0%); 2.00 -> 1.67 times the best peer's speed (-16.7%)" in line


def test_the_threshold_is_the_users(run):
    slower = group(TIMES | {"gankernels-cpu": 6.0})
    assert run(group(), slower, "--threshold", "0.25")[0] == 0
    code, out = run(group(), slower, "--threshold", "0.25", "--json")
    assert code == 0
    result = json.loads(out)
    assert result["regressions"] == 0
    (change,) = result["slower"]
    assert change["judged_by"] == "speed-up"
    assert change["slowdown"] == pytest.approx(0.2)
    assert change["ms"] == [5.0, 6.0]


def test_a_machine_that_drifts_is_no_regression():
    result = compare.compare(group(), group(scaled(TIMES, 1.5)))
    assert result["regressions"] == 0
    assert result["drift"] == pytest.approx(1.5)
    # The peers moved, in ms; our speed-up did not.
    assert sorted(change["provider"] for change in result["slower"]) == ["compile", "eager", "eager-best"]


def test_without_peers_ours_are_compared_in_ms():
    ours = {"gankernels-cpu": 5.0}
    result = compare.compare(group(ours), group(scaled(ours, 1.5)))
    assert result["regressions"] == 1
    assert result["slower"][0]["judged_by"] == "ms"


def test_what_lies_within_the_noise_of_either_does_not_move():
    slower = TIMES | {"gankernels-cpu": 6.0}
    assert compare.compare(group(), group(slower, band=0.5))["steady"] == 4
    assert compare.compare(group(band=0.5), group(slower))["steady"] == 4


def test_faster_is_said_and_is_no_regression(run):
    code, out = run(group(), group(TIMES | {"gankernels-cpu": 3.0}))
    assert code == 0
    assert "faster (1)" in out
    assert "5 -> 3 ms (-40.0%)" in out


def test_a_slower_peer_is_no_regression_of_ours():
    result = compare.compare(group(), group(TIMES | {"compile": 80.0}))
    assert [change["provider"] for change in result["slower"]] == ["compile"]
    assert result["regressions"] == 0


@pytest.mark.parametrize("verdict", ["wrong: dx is off by 3.1", "error: RuntimeError: no kernel"])
def test_a_kernel_that_becomes_wrong_is_a_regression(run, verdict):
    broken = group(TIMES | {"gankernels-cpu": verdict})
    code, out = run(group(), broken)
    assert code == 1
    assert f"yes -> {verdict}; REGRESSION" in out
    code, out = run(broken, group())
    assert code == 0
    assert "mended (1)" in out
    assert run(broken, broken)[0] == 0


def test_a_peer_that_becomes_an_error_is_none(run):
    code, out = run(group(), group(TIMES | {"compile": "error: Unsupported"}))
    assert code == 0
    assert "broken (1)" in out


def test_rows_that_come_and_go_are_listed(run):
    code, out = run(
        [*group(), *group(position="Net G block 2")],
        [*group(), *group({"gankernels-cpu": 1.0}, dtype="bfloat16")],
    )
    assert code == 0
    assert "disappeared (4)" in out
    assert "appeared (1)" in out


def test_a_peer_that_changed_its_way_is_still_the_same_row():
    b = group()
    b[2]["impl"] = "max-autotune"
    result = compare.compare(group(), b)
    assert result["steady"] == 4
    assert not result["disappeared"] + result["appeared"]


def test_another_machine_is_a_warning(run):
    code, out = run(group(), group(device="Other CPU", torch="2.14.0"))
    assert code == 0
    assert "warning: device differs: Test CPU, 2 threads, avx2 in A, Other CPU in B" in out
    assert "warning: torch differs: 2.13.0+cpu in A, 2.14.0 in B" in out


@pytest.mark.parametrize(
    ("b", "options", "message"),
    [
        (group(op="other"), [], "in common"),
        ([*group(), *group()], [], "B: got two rows of scale, Net G block 1"),
        (group(), ["--threshold", "-1"], "--threshold: got -1"),
        (group(), ["--threshold", "nan"], "--threshold: got nan"),
        (group(), ["--treshold", "1"], "unrecognized"),
    ],
)
def test_bad_input_is_one_line(run, b, options, message):
    with pytest.raises(InputError, match=message) as error:
        run(group(), b, *options)
    assert "\n" not in str(error.value)


def test_a_file_that_is_cut_off_is_refused(tmp_path):
    write_csv(tmp_path / "a.csv", group())
    text = (tmp_path / "a.csv").read_text()
    (tmp_path / "b.csv").write_text(text[: len(text) // 2])
    with pytest.raises(InputError, match=r"b\.csv"):
        compare.main([str(tmp_path / "a.csv"), str(tmp_path / "b.csv")])
    with pytest.raises(InputError, match=r"none\.csv"):
        compare.main([str(tmp_path / "a.csv"), str(tmp_path / "none.csv")])
