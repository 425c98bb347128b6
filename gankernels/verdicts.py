"""What this machine was found to run right and fast: ``gankernels tune`` writes it, dispatch reads it.

One file, ``verdicts.json`` in the cache folder (``GANKERNELS_CACHE`` or ``~/.cache/gankernels``):

    {"format": 1,
     "devices": {NAME: {"stamp": {...}, "date": "2026-01-31",
                        "ops": {OP: {DTYPE: {SIZE CLASS: {"chosen": IMPL or null,
                                                          "ms": {IMPL: MILLISECONDS},
                                                          "wrong": {IMPL: WHY}}}}}}}}

``NAME`` is the GPU's, or the processor's for CPU tensors, so that several of them share a file. Verdicts count only
where everything in their stamp is as it was. One thing is weaker: on another number of threads what is wrong stays
wrong, and what was fastest is not known.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from gankernels import _files, _machine, _native
from gankernels._cache_folder import cache_folder
from gankernels._version import __version__
from gankernels.errors import InputError

_FORMAT = 1
_log = logging.getLogger("gankernels")

SIZE_CLASSES = ("small", "medium", "large")
#: "small" has at most 2^19 elements (2 MiB in fp32): launches and calls cost as much as the work. "medium" has at most
#: 2^22 (16 MiB in fp32): a last-level cache may hold it. "large" is all above.
SMALL, MEDIUM = 2**19, 2**22


def size_class(numel: int) -> str:
    """``"small"``, ``"medium"`` or ``"large"``: the class of a tensor with ``numel`` elements, see :data:`SMALL`."""
    return SIZE_CLASSES[(numel > SMALL) + (numel > MEDIUM)]


def dtype_name(dtype: torch.dtype) -> str:
    """``"float32"`` for ``torch.float32``: how the file and the reports write it."""
    return str(dtype).removeprefix("torch.")


class Verdict(NamedTuple):
    """On one op, dtype and size class.

    Attributes:
        chosen: the fastest implementation that is right; None where nothing was timed.
        ms: implementation -> milliseconds of a forward and a backward.
        wrong: implementation -> why its results are not the reference's.
    """

    chosen: str | None
    ms: Mapping[str, float]
    wrong: Mapping[str, str]


#: op -> dtype name -> size class -> verdict
Ops = Mapping[str, Mapping[str, Mapping[str, Verdict]]]


@dataclass(frozen=True)
class Cached:
    """What the file holds for one device.

    Attributes:
        ops: the verdicts that count here; empty if there are none.
        state: where they come from, or why there are none: "tuned on 2026-01-31", "ignored: ...", "none: ..."
    """

    ops: Ops = field(default_factory=dict)
    state: str = "none: run `gankernels tune`"

    def find(self, op: str, dtype: torch.dtype, size: str) -> Verdict | None:
        """The verdict on ``op`` in ``dtype`` for tensors of the class ``size``, if there is one."""
        return self.ops.get(op, {}).get(dtype_name(dtype), {}).get(size)

    def covers(self, op: str, dtype: torch.dtype) -> bool:
        """Whether the implementations of ``op`` in ``dtype`` were held against the reference."""
        return dtype_name(dtype) in self.ops.get(op, {})


def path() -> Path:
    """The file; it need not exist."""
    return cache_folder() / "verdicts.json"


def device_name(device: torch.device) -> str | None:
    """The name that the file knows ``device`` by; None if this machine has no such device."""
    if device.type == "cpu":
        return _machine.processor()
    if device.type == "cuda" and torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count():
        return torch.cuda.get_device_name(device)
    return None


def stamp(device: torch.device) -> dict[str, Any]:
    """Everything that verdicts on ``device`` depend on. ``kernels`` changes with every build and source of a kernel."""
    here: dict[str, Any] = {
        "torch": torch.__version__,
        "triton": _machine.version("triton"),
        "gankernels": __version__,
        "kernels": _fingerprint(),
    }
    if device.type == "cpu":
        isa = _native.extension.cpu_isa() if _native.extension else None
        return here | {"cpu_isa": isa, "threads": torch.get_num_threads()}
    return here | {"driver": _machine.driver(), "cuda": torch.version.cuda}


@functools.cache
def read(device: torch.device) -> Cached:
    """The verdicts on ``device`` that count in this process. The file is read at the first call, and not again.

    Nothing is raised: a file that cannot be used is none, for the reason that :attr:`Cached.state` gives.
    """
    name = device_name(device)
    if name is None:
        return Cached(state=f"none: no {device.type} device here")
    devices, damage = _devices()
    if damage is not None:
        return Cached(state=damage)
    return _usable(devices[name], device) if name in devices else Cached()


def forget() -> None:
    """Read the file anew at the next :func:`read`."""
    read.cache_clear()
    _devices.cache_clear()


def write(device: torch.device, ops: Ops) -> Path:
    """Put the verdicts on ``ops`` into the file, in place of earlier ones on the same ops, and return its path.

    What the file holds on other ops and other devices stays, where it still counts. The file is replaced whole.

    Raises:
        InputError: the cache folder cannot be written.
    """
    name = device_name(device)
    if name is None:
        raise InputError(f"device: got {device}, expected one that this machine has")
    forget()
    devices = dict(_devices()[0])
    kept = _usable(devices[name], device).ops if name in devices else {}
    devices[name] = {
        "stamp": stamp(device),
        "date": datetime.date.today().isoformat(),
        "ops": _as_json(kept) | _as_json(ops),
    }
    try:
        path().parent.mkdir(parents=True, exist_ok=True)
        with _files.replacing(path()) as file:
            file.write(json.dumps({"format": _FORMAT, "devices": devices}, indent=1).encode() + b"\n")
    except OSError as error:
        raise _unwritable(error) from None
    forget()
    return path()


def ensure_writable() -> None:
    """Raise, before hours are spent on what cannot be stored.

    Raises:
        InputError: the cache folder cannot be written.
    """
    try:
        path().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path().parent):
            pass
    except OSError as error:
        raise _unwritable(error) from None


def _unwritable(error: OSError) -> InputError:
    why = error.strerror or str(error)
    return InputError(f"GANKERNELS_CACHE: got {cache_folder()}, expected a folder that can be written ({why})")


@functools.cache
def _devices() -> tuple[dict[str, Any], str | None]:
    """The file's ``devices``, and why it cannot be used if it is there and cannot."""
    try:
        content = json.loads(path().read_bytes())
        if content["format"] != _FORMAT:
            return {}, f"ignored: its format is {content['format']}, this gankernels reads {_FORMAT}"
        for entry in content["devices"].values():
            _ops(entry["ops"])
            entry["stamp"].items()
            entry["date"].strip()
    except FileNotFoundError:
        return {}, None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = error.strerror or str(error) if isinstance(error, OSError) else "it is damaged"
        _log.warning("verdicts %s: ignored, %s; `gankernels tune` makes them again", path(), why)
        return {}, f"ignored: {why}"
    return content["devices"], None


def _ops(content: Any) -> Ops:
    return {
        op: {
            dtype: {
                size: Verdict(
                    _one_of((str, type(None)), verdict["chosen"]),
                    {impl: float(ms) for impl, ms in verdict["ms"].items()},
                    {impl: _one_of((str,), why) for impl, why in verdict["wrong"].items()},
                )
                for size, verdict in sizes.items()
            }
            for dtype, sizes in dtypes.items()
        }
        for op, dtypes in content.items()
    }


def _one_of(types: tuple[type, ...], value: Any) -> Any:
    if not isinstance(value, types):
        raise TypeError
    return value


def _as_json(ops: Ops) -> dict[str, Any]:
    return {
        op: {dtype: {size: verdict._asdict() for size, verdict in sizes.items()} for dtype, sizes in dtypes.items()}
        for op, dtypes in ops.items()
    }


def _usable(entry: Mapping[str, Any], device: torch.device) -> Cached:
    """The part of a device's entry that counts on this machine as it is now."""
    here, there, date = stamp(device), entry["stamp"], entry["date"]
    changed = [key for key in _keys(here, there) if here.get(key) != there.get(key)]
    if not changed:
        return Cached(_ops(entry["ops"]), f"tuned on {date}")
    if changed == ["threads"]:
        wrong = {
            op: {
                dtype: {size: verdict._replace(chosen=None, ms={}) for size, verdict in sizes.items()}
                for dtype, sizes in dtypes.items()
            }
            for op, dtypes in _ops(entry["ops"]).items()
        }
        threads = f"{there['threads']} threads, here are {here['threads']}"
        return Cached(wrong, f"tuned on {date} with {threads}: what is wrong counts, what is fastest does not")
    what = changed[0]
    if what == "kernels":
        return Cached(state=f"ignored: the kernels were built again since {date}; run `gankernels tune`")
    return Cached(
        state=f"ignored: tuned with {what} {there.get(what)}, here is {here.get(what)}; run `gankernels tune`"
    )


def _keys(*stamps: Mapping[str, Any]) -> Iterable[str]:
    return dict.fromkeys(key for one in stamps for key in one)


@functools.cache
def _fingerprint() -> str:
    """Of everything that a kernel is made of: the extension, and the Python and Triton sources of the ops."""
    digest = hashlib.sha256()
    files = sorted((Path(__file__).parent / "ops").rglob("*.py"))
    if _native.extension is not None and _native.extension.__file__:
        files.append(Path(_native.extension.__file__))
    for file in files:
        digest.update(os.fsencode(file.name))
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
