"""Where everything is kept that can be made again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """``GANKERNELS_CACHE``, or ``~/.cache/gankernels``. It need not exist, and may be deleted at any time."""
    given = os.environ.get("GANKERNELS_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "gankernels"
