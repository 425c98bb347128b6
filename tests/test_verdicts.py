from __future__ import annotations

import json
import logging
import os

import pytest
import torch

from gankernels import _machine, verdicts
from gankernels.errors import InputError
from gankernels.verdicts import Verdict

pytestmark = pytest.mark.usefixtures("fresh")

CPU = torch.device("cpu")
RIGHT = Verdict("cpu", {"cpu": 1.0, "reference": 2.5}, {})
WRONG = Verdict("reference", {"reference": 2.5}, {"cpu": "result 1: error 1.00e-02"})


def of(op: str, verdict: Verdict) -> verdicts.Ops:
    return {op: {"float32": dict.fromkeys(verdicts.SIZE_CLASSES, verdict)}}


def test_what_is_written_is_read():
    assert verdicts.read(CPU).state == "none: run `gankernels tune`"
    file = verdicts.write(CPU, of("one", RIGHT))
    verdicts.write(CPU, of("two", WRONG))
    assert file == verdicts.path()
    cached = verdicts.read(CPU)
    assert cached.state.startswith("tuned on 20")
    assert cached.find("one", torch.float32, "small") == RIGHT
    assert cached.find("two", torch.float32, "large") == WRONG
    assert cached.find("two", torch.float64, "large") is None
    assert [cached.covers("two", dtype) for dtype in (torch.float32, torch.float64)] == [True, False]
    verdicts.write(CPU, of("two", RIGHT))
    assert verdicts.read(CPU).find("two", torch.float32, "large") == RIGHT
    assert os.listdir(file.parent) == [file.name]


@pytest.mark.parametrize(
    ("numel", "size"),
    [(0, "small"), (2**19, "small"), (2**19 + 1, "medium"), (2**22, "medium"), (2**22 + 1, "large")],
)
def test_size_classes(numel, size):
    assert verdicts.size_class(numel) == size


def test_the_file_is_read_once():
    verdicts.write(CPU, of("one", RIGHT))
    verdicts.read(CPU)
    verdicts.path().unlink()
    assert verdicts.read(CPU).find("one", torch.float32, "small") == RIGHT


def edit(change) -> None:
    content = json.loads(verdicts.path().read_text())
    change(content)
    verdicts.path().write_text(json.dumps(content))
    verdicts.forget()


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("torch", "1.13.0", "tuned with torch 1.13.0, here is "),
        ("triton", "2.0", "tuned with triton 2.0, here is "),
        ("gankernels", "0.0.1", "tuned with gankernels 0.0.1, here is "),
        ("cpu_isa", "sse", "tuned with cpu_isa sse, here is "),
        ("kernels", "0", "the kernels were built again since "),
    ],
)
def test_of_other_versions_nothing_counts(key, value, says):
    verdicts.write(CPU, of("one", WRONG))
    edit(lambda content: content["devices"][verdicts.device_name(CPU)]["stamp"].update({key: value}))
    cached = verdicts.read(CPU)
    assert cached.state.startswith(f"ignored: {says}")
    assert not cached.ops
    verdicts.write(CPU, of("two", RIGHT))
    assert list(verdicts.read(CPU).ops) == ["two"]


def test_on_other_threads_what_is_wrong_stays_wrong():
    verdicts.write(CPU, {**of("one", WRONG), **of("two", RIGHT)})
    torch.set_num_threads(2)
    verdicts.forget()
    cached = verdicts.read(CPU)
    assert cached.state.endswith("with 1 threads, here are 2: what is wrong counts, what is fastest does not")
    assert cached.find("one", torch.float32, "small") == Verdict(None, {}, WRONG.wrong)
    assert cached.find("two", torch.float32, "small") == Verdict(None, {}, {})


def test_other_devices_keep_theirs():
    verdicts.write(CPU, of("one", RIGHT))
    edit(lambda content: content["devices"].update({"NVIDIA X": content["devices"][verdicts.device_name(CPU)]}))
    verdicts.write(CPU, of("two", RIGHT))
    devices = json.loads(verdicts.path().read_text())["devices"]
    assert list(devices["NVIDIA X"]["ops"]) == ["one"]
    assert list(devices[verdicts.device_name(CPU)]["ops"]) == ["one", "two"]


def test_a_device_that_is_not_there():
    missing = torch.device("cuda", 99)
    assert verdicts.read(missing).state == "none: no cuda device here"
    with pytest.raises(InputError, match=r"device: got cuda:99"):
        verdicts.write(missing, {})


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: "\x00" * 100,
        lambda text: text.replace('"devices"', '"machines"'),
        lambda text: text.replace('"chosen": "cpu"', '"chosen": 3'),
        lambda text: text.replace('"cpu": 1.0', '"cpu": "fast"'),
        lambda text: text.replace('"wrong": {}', '"wrong": []'),
    ],
)
def test_a_damaged_file_is_ignored_with_one_line(damage, caplog):
    verdicts.write(CPU, of("one", RIGHT))
    text = verdicts.path().read_text()
    assert damage(text) != text
    verdicts.path().write_text(damage(text))
    verdicts.forget()
    with caplog.at_level(logging.WARNING, "gankernels"):
        assert verdicts.read(CPU) == verdicts.Cached(state="ignored: it is damaged")
        verdicts.read(CPU)
    (record,) = caplog.records
    assert record.getMessage().endswith("ignored, it is damaged; `gankernels tune` makes them again")
    verdicts.write(CPU, of("two", RIGHT))
    assert list(verdicts.read(CPU).ops) == ["two"]


def test_another_format_is_ignored():
    verdicts.write(CPU, of("one", RIGHT))
    edit(lambda content: content.update({"format": 99}))
    assert verdicts.read(CPU).state == "ignored: its format is 99, this gankernels reads 1"


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GANKERNELS_CACHE", str(tmp_path / "file"))
    verdicts.forget()
    for attempt in (verdicts.ensure_writable, lambda: verdicts.write(CPU, of("one", RIGHT))):
        with pytest.raises(InputError, match=r"GANKERNELS_CACHE: got .*file, expected a folder that can be written"):
            attempt()


@pytest.mark.parametrize(
    "line",
    [
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 07:16:51 UTC 2025",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs-builder)",
    ],
)
def test_the_driver_is_read_from_its_file(tmp_path, monkeypatch, line):
    (tmp_path / "version").write_text(f"{line}\nGCC version:  gcc version 12.3.0\n")
    monkeypatch.setattr(_machine, "_DRIVER_FILE", tmp_path / "version")
    assert _machine.driver.__wrapped__() == "580.65.06"
