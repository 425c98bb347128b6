"""``gankernels train``: the config's fields as options."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NoReturn

import tyro

from gankernels.errors import InputError
from gankernels.train.config import Config
from gankernels.train.loop import read_config, train
from gankernels.train.presets import preset
from gankernels.train.telemetry import Diverged


@dataclass(frozen=True)
class Command:
    """Train a preset on a data set. Every field of its config is an option; the defaults shown are the preset's."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    resume: bool = False
    """Go on from the newest checkpoint in --out; the options default to those that the run began with."""
    dry_run: bool = False
    """Print the resolved config as JSON and do nothing."""


def main(argv: list[str]) -> int:
    """Run ``gankernels train ARGV``; 0 when trained, 1 when training diverged, 130 when interrupted."""
    command = parse(argv)
    config = command.config
    if command.dry_run:
        config.check()
        print(json.dumps(dataclasses.asdict(config), indent=2))
        return 0
    try:
        outcome = train(config, resume=command.resume)
    except Diverged as error:
        print(f"gankernels: {error}", file=sys.stderr)
        return 1
    if outcome.interrupted:
        print(
            f"gankernels: saved after {outcome.images:,} images; go on with: "
            f"gankernels train --out {outcome.run} --resume",
            file=sys.stderr,
        )
        return 130
    print(outcome.run)
    return 0


def parse(argv: list[str]) -> Command:
    """The command that ``argv`` spells.

    Raises:
        InputError: an option is unknown, has no value or a wrong one.
    """
    default = Command(_starting_config(argv))
    report = io.StringIO()
    try:
        with contextlib.redirect_stderr(report):
            return tyro.cli(
                Command, prog="gankernels train", default=default, args=argv, config=(tyro.conf.FlagCreatePairsOff,)
            )
    except SystemExit as end:
        if end.code in (0, None):  # --help
            raise
        raise InputError(f"gankernels train: {_message(report.getvalue())}") from None


def _starting_config(argv: list[str]) -> Config:
    """What the options default to: the preset's config, or that of the run to be resumed."""
    early = _EarlyParser(add_help=False, allow_abbrev=False)
    early.add_argument("--preset")
    early.add_argument("--out", default="")
    early.add_argument("--resume", action="store_true")
    arguments, _ = early.parse_known_args(argv)
    if arguments.resume and arguments.out and (Path(arguments.out) / "config.json").exists():
        return dataclasses.replace(read_config(Path(arguments.out)), out=arguments.out)
    if arguments.preset is None:
        if {"-h", "--help"} & set(argv):
            return preset("sngan-32")
        raise InputError("--preset: got nothing, expected the name of a preset, such as sngan-32")
    return preset(arguments.preset)


class _EarlyParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"gankernels train: {message}")


def _message(report: str) -> str:
    """The message in tyro's framed report, on one line: a title, a rule, the message, a rule, advice."""
    paragraphs: list[list[str]] = [[]]
    for line in report.splitlines():
        text = line.strip(" │|")
        if set(text) <= set("-─╭╮╰╯+"):
            paragraphs.append([])
        elif not text.startswith("╭"):  # a title set into the frame
            paragraphs[-1].append(text)
    found = [" ".join(lines) for lines in paragraphs if lines]
    if not found:
        return "bad arguments; see gankernels train --help"
    return found[0] if "╭" in report or len(found) == 1 else found[1]
