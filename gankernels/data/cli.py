"""``gankernels data prepare SRC OUT.zip``."""

from __future__ import annotations

import json
import sys

from gankernels._arguments import ArgumentParser
from gankernels.errors import InputError

_USAGE = """usage: gankernels data prepare SRC OUT.zip [options]

  prepare  pictures of any kind to the layout that training reads

gankernels data prepare --help tells more."""


def main(argv: list[str]) -> int:
    """Run ``gankernels data ARGV`` and return its exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_USAGE)
        return 0
    if argv[0] != "prepare":
        raise InputError(f"data: got {argv[0]!r}, expected prepare")
    return _prepare(argv[1:])


def _prepare(argv: list[str]) -> int:
    arguments = _parser().parse_args(argv)

    from gankernels.data.conversion import prepare
    from gankernels.data.sources import Skipped

    def report(file: Skipped) -> None:
        print(f"skipped {file.name}: {file.reason}", file=sys.stderr)

    prepared = prepare(
        arguments.source,
        arguments.out,
        size=arguments.size,
        fit=arguments.fit,
        channels=None if arguments.channels == "auto" else int(arguments.channels),
        background=arguments.background,
        strict=arguments.strict,
        on_skip=report,
    )
    for note in prepared.notes:
        print(f"note: {note}", file=sys.stderr)
    if prepared.skipped:
        total = prepared.num_images + len(prepared.skipped)
        print(f"skipped {len(prepared.skipped)} of {total} files", file=sys.stderr)
    if arguments.json:
        figures = {
            "out": str(prepared.path),
            "images": prepared.num_images,
            "size": prepared.size,
            "channels": prepared.channels,
            "classes": prepared.num_classes,
            "class_names": list(prepared.class_names),
            "skipped": [{"name": file.name, "reason": file.reason} for file in prepared.skipped],
            "notes": list(prepared.notes),
        }
        print(json.dumps(figures))
    else:
        kind = "grey" if prepared.channels == 1 else "RGB"
        classes = f"{prepared.num_classes} classes" if prepared.num_classes else "no labels"
        print(f"{prepared.path}: {prepared.num_images} {kind} pictures of {prepared.size} px, {classes}")
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser("data prepare", "Convert pictures to a zip of PNG and dataset.json (the StyleGAN layout).")
    parser.add_argument(
        "source",
        metavar="SRC",
        help="folder of class folders, zip (with dataset.json or class folders), idx file or folder of them, npz, "
        "or a built-in name: fashion-mnist, digits, synthetic:<resolution>x<classes>",
    )
    parser.add_argument("out", metavar="OUT.zip", help="the file to write; replaced only when the new one is complete")
    parser.add_argument("--size", type=int, help="side of the square pictures in pixels (default: the first one's)")
    parser.add_argument(
        "--fit",
        choices=("crop", "pad", "stretch"),
        default="crop",
        help="pictures that are not square: keep the centre, add background, or change the proportions (default: crop)",
    )
    parser.add_argument(
        "--channels",
        choices=("1", "3", "auto"),
        default="auto",
        help="1 grey, 3 RGB, auto: 1 if every picture is grey (default: auto)",
    )
    parser.add_argument(
        "--background",
        choices=("white", "black"),
        default="white",
        help="beneath transparent pixels and around padded pictures (default: white)",
    )
    parser.add_argument("--strict", action="store_true", help="fail on the first file that would be skipped")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    return parser
