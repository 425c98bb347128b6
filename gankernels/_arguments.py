"""What the subcommands' argument parsers share."""

from __future__ import annotations

import argparse
from typing import NoReturn

from gankernels.errors import InputError


class ArgumentParser(argparse.ArgumentParser):
    """An argparse parser that reports a bad argument as an :class:`InputError`: one line, exit code 2."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(prog=f"gankernels {command}", description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{self.prog}: {message}")
