"""The ``gankernels`` command: finds the subcommand, and turns what goes wrong into one line and an exit code.

Exit codes: 0 success, 1 a failed check, 2 bad arguments or bad input, 130 interrupted.
"""

from __future__ import annotations

import importlib
import os
import sys

from gankernels.errors import ImplementationUnavailable, InputError

#: name -> (module with ``main(argv) -> exit code``, one line for ``--help``). Imported only when asked for.
COMMANDS = {
    "doctor": ("gankernels.doctor", "what runs on this machine and why; what was left out of the build"),
    "bench": ("gankernels.bench.cli", "every op and step against PyTorch at its best; `bench compare A B`"),
    "tune": ("gankernels.bench.tune", "verify every kernel here, then pick the fastest"),
    "data": ("gankernels.data.cli", "prepare SRC OUT.zip: pictures of any kind to the layout that training reads"),
    "train": ("gankernels.train.cli", "train a preset on a data set"),
    "sample": ("gankernels.train.sample", "pictures from a trained generator"),
    "evaluate": ("gankernels.metrics.cli", "accuracy and Frechet distance of a trained generator's samples"),
}


def main(argv: list[str] | None = None) -> int:
    """Run ``gankernels ARGV`` and return its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(_help())
        return 0
    if argv[0] == "--version":
        from gankernels._version import __version__

        print(f"gankernels {__version__}")
        return 0
    try:
        if argv[0] not in COMMANDS:
            raise InputError(f"command: got {argv[0]!r}, expected one of {', '.join(COMMANDS)}")
        return importlib.import_module(COMMANDS[argv[0]][0]).main(argv[1:])
    except (InputError, ImplementationUnavailable) as error:
        print(f"gankernels: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader (head, less) left. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(["usage: gankernels COMMAND [options]", "", *lines, "", "gankernels COMMAND --help tells more."])
