"""Triton's interpreter without two thirds of its work, all of which it throws away."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable

from gankernels import dispatch


def quicken() -> None:
    """Make the interpreter do once, or not at all, what changes no result; nothing where Triton does not interpret.

    - A launch puts the interpreter's functions in place of those of ``triton.language``. Each call of a device function
      inside it searched the modules again, for nothing.
    - Each sum and product of int32 was made again in int64, to be compared with the ends of int32, for an assertion
      that the interpreter then leaves out: it always has ``debug=False``.
    """
    if not dispatch.has_triton or os.environ.get("TRITON_INTERPRET") != "1":
        return
    import triton.language as tl
    from triton.runtime import interpreter

    builder = interpreter.interpreter_builder
    assert not builder.options.debug
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)

    patch = interpreter._patch_lang

    @functools.cache
    def languages(function: Callable) -> list:
        return [m for m in function.__globals__.values() if inspect.ismodule(m) and m in (tl, tl.core)]

    def patch_lang(function: Callable) -> interpreter._LangPatchScope:
        if any(tl.core.is_builtin(language.load) for language in languages(function)):
            return patch(function)
        return interpreter._LangPatchScope()

    interpreter._patch_lang = patch_lang
