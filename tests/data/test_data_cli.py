"""``gankernels data prepare``: what it prints, its exit codes, and one line for every bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from picture_files import damaged_folder, gradient, half_a_zip, make_folder, one_picture, png, write, write_zip

from gankernels import cli


def run(capsys, *argv) -> tuple[int, str, list[str]]:
    code = cli.main(["data", *map(str, argv)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err.splitlines()


def test_the_command_names_skips_and_counts_them(tmp_path, capsys):
    code, out, err = run(capsys, "prepare", damaged_folder(tmp_path / "set"), tmp_path / "out.zip")
    assert code == 0
    assert "6 RGB pictures of 8 px, 2 classes" in out
    assert "skipped notes.txt: not a picture" in err
    assert err[-1] == "skipped 4 of 10 files"


def test_the_command_prints_json(tmp_path, capsys):
    code, out, _ = run(capsys, "prepare", damaged_folder(tmp_path / "set"), tmp_path / "out.zip", "--json", "--size", 4)
    figures = json.loads(out)
    assert code == 0
    assert (figures["images"], figures["size"], figures["channels"], figures["classes"]) == (6, 4, 3, 2)
    assert figures["class_names"] == ["cat", "dog"]
    assert {file["name"] for file in figures["skipped"]} == {
        "cat/cut.png",
        "dog/empty.jpg",
        "dog/text.png",
        "notes.txt",
    }


def test_a_text_file_in_a_zip_is_skipped_or_fails_when_strict(tmp_path, capsys):
    files = {f"{c}/0.png": png(gradient(4, 4)) for c in "ab"}
    archive = write_zip(tmp_path / "set.zip", files | {"README.txt": b"hello"})
    assert run(capsys, "prepare", archive, tmp_path / "out.zip")[0] == 0
    code, _, err = run(capsys, "prepare", archive, tmp_path / "out.zip", "--strict")
    assert code == 2
    assert len(err) == 1
    assert "README.txt" in err[0]


BAD = {
    "no command": lambda t: ["convert"],
    "no arguments": lambda t: ["prepare"],
    "no such source": lambda t: ["prepare", t / "missing", t / "out.zip"],
    "empty folder": lambda t: ["prepare", make_folder(t / "empty"), t / "out.zip"],
    "only text": lambda t: ["prepare", write_zip(t / "s.zip", {"a.txt": b"x"}), t / "out.zip"],
    "nothing readable": lambda t: ["prepare", write_zip(t / "s.zip", {"a/b.png": b"x"}), t / "out.zip", "--strict"],
    "not a zip": lambda t: ["prepare", write(t / "s.zip", b"hello"), t / "out.zip"],
    "an empty zip": lambda t: ["prepare", write_zip(t / "s.zip", {}), t / "out.zip"],
    "half a zip": lambda t: ["prepare", half_a_zip(t), t / "out.zip"],
    "OUT a folder": lambda t: ["prepare", one_picture(t / "set"), make_folder(t / "out.zip")],
    "OUT's folder missing": lambda t: ["prepare", one_picture(t / "set"), t / "no" / "out.zip"],
    "OUT no zip": lambda t: ["prepare", one_picture(t / "set"), t / "out.tar"],
    "OUT is SRC": lambda t: ["prepare", write_zip(t / "out.zip", {"a/b.png": png(gradient(4, 4))}), t / "out.zip"],
    "size 0": lambda t: ["prepare", one_picture(t / "set"), t / "out.zip", "--size", "0"],
    "size below 0": lambda t: ["prepare", one_picture(t / "set"), t / "out.zip", "--size=-3"],
    "size no int": lambda t: ["prepare", one_picture(t / "set"), t / "out.zip", "--size", "big"],
    "size too large": lambda t: ["prepare", one_picture(t / "set"), t / "out.zip", "--size", "1000000"],
    "channels 2": lambda t: ["prepare", one_picture(t / "set"), t / "out.zip", "--channels", "2"],
    "fit unknown": lambda t: ["prepare", one_picture(t / "set"), t / "out.zip", "--fit", "squeeze"],
    "unknown option": lambda t: ["prepare", one_picture(t / "set"), t / "out.zip", "--fast"],
    "bad synthetic": lambda t: ["prepare", "synthetic:64", t / "out.zip"],
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, capsys, case):
    argv = BAD[case](tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    code, out, err = run(capsys, *argv)
    assert (code, out) == (2, "")
    assert len(err) == 1
    assert err[0].startswith("gankernels: error: ")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_nothing_readable_says_how_many_were_skipped(tmp_path, capsys):
    archive = write_zip(tmp_path / "s.zip", {"a/b.png": b"x", "c/d.png": b"y"})
    code, _, err = run(capsys, "prepare", archive, tmp_path / "out.zip")
    assert code == 2
    assert err[:2] == ["skipped a/b.png: not a picture", "skipped c/d.png: not a picture"]
    assert "2 skipped" in err[2]
    assert not (tmp_path / "out.zip").exists()


def test_the_help_is_printed(capsys):
    assert run(capsys)[0] == 0
    assert run(capsys, "--help")[1].startswith("usage: gankernels data prepare")


def test_a_bar_on_a_terminal_keeps_the_skips_readable(tmp_path):
    """In a pseudo-terminal: the bar is drawn, the skipped files are still named, and the exit code is 0."""
    pty = pytest.importorskip("pty")
    root = damaged_folder(tmp_path / "set")
    parent, child = pty.openpty()
    command = [sys.executable, "-m", "gankernels", "data", "prepare", str(root), str(tmp_path / "out.zip")]
    with subprocess.Popen(command, stderr=child, stdout=subprocess.DEVNULL) as process:
        os.close(child)
        text = b""
        try:
            while data := os.read(parent, 4096):
                text += data
        except OSError:
            pass
    os.close(parent)
    assert process.returncode == 0
    assert b"preparing" in text
    assert b"skipped dog/text.png: not a picture" in text
