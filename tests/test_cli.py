from __future__ import annotations

import json

import pytest

from gankernels import cli, doctor


def test_help_names_every_command(capsys):
    assert cli.main([]) == 0
    shown = capsys.readouterr().out
    for command in cli.COMMANDS:
        assert f"  {command} " in shown


@pytest.mark.parametrize("command", [["doctor"], ["data", "prepare"], ["train"], ["sample"], ["evaluate"]], ids=str)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main([*command, "--help"])
    assert exit_.value.code == 0
    assert "usage" in capsys.readouterr().out.lower()


@pytest.mark.parametrize("arguments", [["doctr"], ["doctor", "--jsn"], ["data", "prepair"], ["sample"]])
def test_bad_arguments_are_one_line_and_exit_code_2(arguments, capsys):
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("gankernels: error: ")
    assert captured.err.count("\n") == 1


def test_doctor(capsys):
    assert cli.main(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts == doctor()
    verdicts = facts["ops"]["conditional_batch_norm"]["cpu"]
    assert sorted(verdicts) == ["cpu", "cuda", "reference", "triton"]
    assert verdicts["cuda"] == "not available: runs on cuda tensors, not cpu"
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "conditional_batch_norm on cpu tensors" in text


def test_doctor_answers_where_calls_would_raise(monkeypatch):
    monkeypatch.setattr("gankernels.dispatch._environment", "cuda")
    monkeypatch.setenv("GANKERNELS_IMPL", "cuda")
    verdict = doctor()["ops"]["conditional_batch_norm"]["cpu"]["cuda"]
    assert verdict.endswith("(forced by GANKERNELS_IMPL: every call raises)")
