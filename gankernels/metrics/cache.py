"""Files that can be made again: a trained classifier, statistics of real data.

A file is a SHA-256 digest and the bytes that ``torch.save`` wrote. It is written whole or not at all; one that was cut,
altered or made by something else is rebuilt, and the log says so.
"""

from __future__ import annotations

import hashlib
import io
import logging
import re
from pathlib import Path
from typing import Any

import torch

from gankernels import _files
from gankernels._cache_folder import cache_folder

_log = logging.getLogger("gankernels")
_DIGEST_BYTES = hashlib.sha256().digest_size


def folder() -> Path:
    """Where the files are: ``metrics`` in the cache folder (``GANKERNELS_CACHE`` or ``~/.cache/gankernels``)."""
    return cache_folder() / "metrics"


def file_name(kind: str, data_name: str, *key: object) -> str:
    """``<kind>-<data set>-<hash of all that the content depends on>``."""
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", Path(data_name).name).strip("-.")[:40] or "data"
    return f"{kind}-{readable}-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.pt"


def load(name: str) -> dict[str, Any] | None:
    """What was stored under ``name``; None if nothing was, or if the file is not whole (then a warning is logged)."""
    path = folder() / name
    try:
        content = path.read_bytes()
        digest, payload = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(payload).digest() == digest:
            return torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
        reason = "it is damaged"
    except FileNotFoundError:
        return None
    except Exception as error:  # Whatever is wrong with a cache, the answer is to make it again.
        reason = f"{type(error).__name__} on reading it"
    _log.warning("cache %s: %s, making it again", path, reason)
    return None


def store(name: str, payload: dict[str, Any]) -> None:
    """Write ``payload`` (tensors, numbers, strings, and dicts and lists of them) under ``name``, atomically.

    A folder that cannot be written costs time at the next call, not the result: it is logged.
    """
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    content = hashlib.sha256(buffer.getvalue()).digest() + buffer.getvalue()
    try:
        folder().mkdir(parents=True, exist_ok=True)
        with _files.replacing(folder() / name) as file:
            file.write(content)
    except OSError as error:
        _log.warning("cache %s: cannot be written (%s), going on without", folder() / name, error.strerror or error)
