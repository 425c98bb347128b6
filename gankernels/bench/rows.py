"""Results as rows of text, and the files that hold them. See ``docs/benchmarking.md`` for what the columns mean."""

from __future__ import annotations

import csv
import datetime
import io
import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from gankernels import _native
from gankernels._files import replacing
from gankernels._machine import driver, processor, version
from gankernels._version import __version__
from gankernels.errors import InputError

COLUMNS = (
    *("op", "position", "shape", "dtype", "layout", "mode", "provider", "impl", "ms", "ms_p20", "ms_p80"),
    *("speedup_vs_eager", "speedup_vs_best_peer", "floor_share", "floor_kind", "peak_mib", "saved_mib", "correct"),
    *("device", "driver", "torch", "triton", "gankernels", "commit", "date"),
)
#: Column -> text. A number stands as the files hold it; what there is none of is empty.
Row = dict[str, str]


def stamp(device: str) -> Row:
    """The columns that say where, with what and when a row was measured; ``device`` is "cpu" or "cuda"."""
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else _cpu_name(),
        "driver": driver() if device == "cuda" else "",
        "torch": torch.__version__,
        "triton": version("triton") or "",
        "gankernels": __version__,
        "commit": _commit(),
        "date": datetime.date.today().isoformat(),
    }


def slug(device: str) -> str:
    """The name of the folder of a device's committed rows: "AMD EPYC, 2 threads" -> "amd-epyc-2-threads"."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def write_csv(path: Path | str, rows: Sequence[Row], columns: Sequence[str] = COLUMNS) -> None:
    """Write ``rows`` as CSV with a header; the file is replaced at once, whole.

    Raises:
        InputError: the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    _replace(path, text.getvalue())


def write_json(path: Path | str, rows: Sequence[Row], ceilings: Mapping[str, Any] | None = None) -> None:
    """Write ``{"rows": [...], "ceilings": {...}}``; the file is replaced at once, whole.

    Raises:
        InputError: the file cannot be written.
    """
    _replace(path, json.dumps({"rows": list(rows), "ceilings": dict(ceilings or {})}, indent=1) + "\n")


def read(path: Path | str) -> list[Row]:
    """The rows of a ``.csv`` or a ``.json`` file.

    Raises:
        InputError: another suffix, no such file, or not what :func:`write_csv` or :func:`write_json` writes.
    """
    readers = {".csv": read_csv, ".json": read_json}
    suffix = Path(path).suffix
    if suffix not in readers:
        raise InputError(f"file: got {path}, expected a .csv or a .json file of gankernels bench")
    return readers[suffix](path)


def read_csv(path: Path | str, columns: Sequence[str] | None = COLUMNS) -> list[Row]:
    """The rows that :func:`write_csv` wrote, of any columns for None; raises as :func:`read` does."""
    text = _text(path)
    try:
        table = list(csv.reader(io.StringIO(text), strict=True)) if text.endswith("\n") else []
    except csv.Error:
        raise _rubbish(path) from None
    if not table or tuple(table[0]) != tuple(columns or table[0]):
        raise _rubbish(path)
    header = table[0]
    return [_row(path, dict(zip(header, values, strict=False)), len(values), header) for values in table[1:]]


def read_json(path: Path | str) -> list[Row]:
    """The rows that :func:`write_json` wrote; raises as :func:`read` does."""
    try:
        content = json.loads(_text(path))
    except ValueError:
        raise _rubbish(path) from None
    if not isinstance(content, dict) or not isinstance(content.get("rows"), list):
        raise _rubbish(path)
    return [_row(path, row, len(row) if isinstance(row, dict) else -1) for row in content["rows"]]


def _row(path: Path | str, row: Any, count: int, columns: Sequence[str] = COLUMNS) -> Row:
    if count != len(columns) or set(row) != set(columns) or not all(isinstance(text, str) for text in row.values()):
        raise _rubbish(path)
    return {column: row[column] for column in columns}


def _rubbish(path: Path | str) -> InputError:
    return InputError(f"file: got {path}, expected whole rows, with the columns that gankernels writes")


def _text(path: Path | str) -> str:
    try:
        return Path(path).read_bytes().decode()
    except OSError as error:
        raise InputError(f"file: got {path}, expected a file that can be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise _rubbish(path) from None


def _replace(path: Path | str, text: str) -> None:
    try:
        with replacing(Path(path)) as file:
            file.write(text.encode())
    except OSError as error:
        raise InputError(f"file: got {path}, expected one that can be written ({error.strerror})") from None


def _cpu_name() -> str:
    isa = _native.extension.cpu_isa() if _native.extension else "no C++ kernels"
    return f"{processor()}, {torch.get_num_threads()} threads, {isa}"


def _commit() -> str:
    """The commit of the checkout that this package lies in, with "+" where what is measured differs from it."""
    package = Path(__file__).parent.parent
    git = ["git", "-C", str(package)]
    # An environment within somebody else's repository is not a checkout of ours.
    if not _output([*git, "ls-files", "__init__.py"]):
        return ""
    measured = [".", "../csrc", "../setup.py", "../CMakeLists.txt"]
    changed = _output([*git, "status", "--porcelain", "--untracked-files=no", "--", *measured])
    return _output([*git, "rev-parse", "--short", "HEAD"]) + ("+" if changed else "")


def _output(command: Sequence[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
