"""``gankernels sample``: pictures from a trained generator."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from gankernels._arguments import ArgumentParser
from gankernels.errors import InputError
from gankernels.models.interface import GeneratorModule
from gankernels.train.images import generate, latents, render, save_grid
from gankernels.train.loop import pick_device
from gankernels.train.trained import load_generator


def main(argv: list[str]) -> int:
    """Run ``gankernels sample ARGV`` and return its exit code."""
    arguments = _parser().parse_args(argv)
    if arguments.per_class < 1:
        raise InputError(f"--per-class: got {arguments.per_class}, expected at least 1")
    if arguments.interpolate and arguments.format == "zip":
        raise InputError("--format: got zip with --interpolate, expected png: pictures between classes have no label")
    out = Path(arguments.out)
    if out.is_dir() or not out.parent.is_dir():
        raise InputError(f"--out: got {out}, expected a file name in a folder that exists")

    trained = load_generator(arguments.run, ema=not arguments.no_ema, device=pick_device(arguments.device))
    classes = parse_classes(arguments.classes, trained.class_names)
    columns = arguments.per_class
    labels = torch.tensor(classes).repeat_interleave(columns)
    options = {"seed": arguments.seed, "truncation": arguments.truncation}
    if arguments.interpolate:
        pictures = interpolate(trained.generator, classes, columns=columns, **options)
    else:
        pictures = generate(trained.generator, labels, **options)
    try:
        if arguments.format == "zip":
            save_zip(pictures, labels, out, class_names=trained.class_names)
        else:
            save_grid(pictures, out, columns=columns)
    except OSError as error:
        raise InputError(f"--out: got {out}, which cannot be written ({error.strerror or error})") from None
    print(out)
    return 0


def parse_classes(given: Sequence[str] | None, names: Sequence[str]) -> list[int]:
    """Class numbers from numbers and names; all of them for None.

    Raises:
        InputError: a class that the generator does not have.
    """
    if given is None:
        return list(range(len(names)))
    classes = []
    for text in given:
        if text in names:
            classes.append(names.index(text))
        elif text.isdecimal() and int(text) < len(names):
            classes.append(int(text))
        else:
            shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
            raise InputError(f"--classes: got {text!r}, expected a number from 0 to {len(names) - 1} or one of {shown}")
    return classes


def interpolate(
    generator: GeneratorModule, classes: Sequence[int], *, columns: int, seed: int, truncation: float | None = None
) -> Tensor:
    """Rows that move from one latent and class to the next ones: row i from ``classes[i]`` to the class after it.

    Latents move on the great circle between them (between straight ones they would get shorter than any that was
    trained on), classes on the straight line between their gains and biases.

    Returns:
        uint8 [len(classes) * columns, C, H, W] on the CPU.
    """
    t = torch.linspace(0, 1, columns)
    z = latents(len(classes) + 1, generator.dim_z, seed=seed, truncation=truncation)
    ends = [*classes, classes[0]]
    frames = [slerp(z[i], z[i + 1], t) for i in range(len(classes))]
    start = torch.tensor(ends[:-1]).repeat_interleave(columns)
    stop = torch.tensor(ends[1:]).repeat_interleave(columns)
    between = _between_classes(generator, start, stop, t.repeat(len(classes)))
    return render(between, torch.cat(frames), torch.arange(len(start)))


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Points [T, D] at ``t`` [T] in [0, 1] on the great circle from ``a`` [D] to ``b`` [D]. Shoemake, SIGGRAPH 1985."""
    omega = torch.acos((a @ b / (a.norm() * b.norm())).clamp(-1, 1))
    if omega.sin().abs() < 1e-4:  # the same direction, or the opposite one
        return torch.lerp(a, b, t[:, None])
    return (torch.sin((1 - t) * omega)[:, None] * a + torch.sin(t * omega)[:, None] * b) / omega.sin()


def save_zip(pictures: Tensor, labels: Tensor, path: Path, *, class_names: Sequence[str]) -> None:
    """Write pictures uint8 [N, C, H, W] and labels int64 [N] as a prepared data set."""
    from PIL import Image

    from gankernels.data.layout import ArchiveWriter
    from gankernels.data.pictures import encode_png

    with ArchiveWriter(path) as writer:
        for picture, label in zip(pictures.permute(0, 2, 3, 1).squeeze(3).numpy(), labels.tolist(), strict=True):
            writer.add(encode_png(Image.fromarray(picture)), label)
        writer.commit(class_names)


@torch.no_grad()
def _between_classes(generator: GeneratorModule, start: Tensor, stop: Tensor, t: Tensor) -> GeneratorModule:
    """A copy of the generator whose label k lies ``t[k]`` of the way from the class ``start[k]`` to ``stop[k]``."""
    generator = copy.deepcopy(generator)
    for table in generator.modules():  # of the class: in each conditional norm, or one that all of them share
        if isinstance(table, nn.Embedding):
            rows = torch.lerp(table.weight[start], table.weight[stop], t[:, None].to(table.weight))
            table.weight = nn.Parameter(rows, requires_grad=False)
    return generator


def _parser() -> ArgumentParser:
    parser = ArgumentParser("sample", "Pictures from a trained generator.")
    parser.add_argument("--run", required=True, metavar="DIR", help="the run's folder")
    parser.add_argument("--out", required=True, metavar="FILE", help="the file to write")
    parser.add_argument("--classes", nargs="+", metavar="CLASS", help="numbers or names; default: every class")
    parser.add_argument("--per-class", type=int, default=8, metavar="N", help="pictures of each class (default: 8)")
    parser.add_argument("--truncation", type=float, metavar="T", help="draw latents from [-T, T]: fewer failures")
    parser.add_argument("--seed", type=int, default=0, help="of the latents (default: 0)")
    parser.add_argument(
        "--interpolate", action="store_true", help="each row moves from one latent and class to the next one"
    )
    parser.add_argument(
        "--format", choices=("png", "zip"), default="png", help="a grid, or a prepared data set (default: png)"
    )
    parser.add_argument("--no-ema", action="store_true", help="the weights of the last step, not their average")
    parser.add_argument("--device", default="auto", help="cuda, cuda:1 or cpu (default: auto)")
    return parser
