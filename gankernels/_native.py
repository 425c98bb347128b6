"""Loads the native extension ``gankernels._C``, or keeps the reason why it cannot be loaded.

``setup.py`` leaves ``_build.json`` beside this file: what was built, against which torch, and what was left out and
why. The extension is loaded only into the torch release it was built for, because libtorch's C++ interface changes
between releases and a mismatch would crash where this module can still explain. In a checkout, whose sources may have
moved on since it was built, it must also have the ops that ``csrc/ops.cpp`` declares.
"""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

_BUILD_FILE = Path(__file__).with_name("_build.json")
#: What Python calls of the module, beside its ops.
_FUNCTIONS = ("cpu_isa", "want_weight_gradients")
_SCHEMAS_FILE = Path(__file__).parents[1] / "csrc" / "ops.cpp"


def _read_build() -> dict[str, Any]:
    try:
        return json.loads(_BUILD_FILE.read_text())
    except FileNotFoundError:
        return {"left_out": {"cpu": "not built: install the package with pip, it builds the extension"}}


def _release(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _load() -> tuple[ModuleType | None, str | None]:
    if "cpu" in build["left_out"]:
        return None, build["left_out"]["cpu"]
    if _release(build["torch"]) != _release(torch.__version__):
        return None, f"built for torch {build['torch']}, running {torch.__version__}: install gankernels again"
    try:
        module = importlib.import_module("gankernels._C")
    except ImportError as error:
        # The loader's own words (a missing symbol, a missing library) are what a bug report needs.
        return None, f"the extension did not load: {str(error).splitlines()[0]}"
    if (missing := next((name for name in _FUNCTIONS if not hasattr(module, name)), None)) is not None:
        return None, f"the extension was built from other sources, it has no {missing}: install gankernels again"
    if (op := _first_stale_op()) is not None:
        return None, f"the extension was built from other sources, its {op} is not theirs: install gankernels again"
    return module, None


def _first_stale_op() -> str | None:
    """The first op of the checkout that was built otherwise or not at all; None where this lies in no checkout."""
    try:
        source = _SCHEMAS_FILE.read_text()
    except OSError:
        return None
    for literals in re.findall(r'm\.def\(\s*((?:"[^"]*"\s*)+)\)', source):
        schema = torch._C.parse_schema("gankernels::" + "".join(re.findall(r'"([^"]*)"', literals)))
        name = schema.name.removeprefix("gankernels::")
        op = getattr(torch.ops.gankernels, name, None)
        if op is None or str(op.default._schema) != str(schema):
            return name
    return None


#: What ``setup.py`` wrote: ``torch``, ``compiler``, ``cuda`` (version or null), ``left_out`` (part -> reason).
build = _read_build()
#: The extension module, or None.
extension, why_no_cpu = _load()


def _without_cuda() -> str | None:
    if extension is None:
        return why_no_cpu
    if "cuda" in build["left_out"]:
        return str(build["left_out"]["cuda"])
    return None if torch.cuda.is_available() else "no CUDA device"


why_no_cuda = _without_cuda()
