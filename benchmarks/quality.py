"""Trains presets on Fashion-MNIST and judges them: benchmarks/results/quality/<device>.csv, docs/images/quality.png.

    python benchmarks/quality.py [RECIPE ...] [--provider NAME] [--seed S ...] [--images N] [--threads N]
    python benchmarks/quality.py [RECIPE ...] --sheet [FILE]

A recipe is a preset with options of ``gankernels train`` that narrow it to what a processor learns in minutes. A run is
saved as a row as soon as it is judged: it takes the place of the row of the same run, and all others stay.
``--provider stock`` trains the same networks, from the same initial weights, in stock PyTorch layers. ``--sheet``
trains nothing: it draws the pictures of runs that are there. docs/models.md says how to read both.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from gankernels._files import replacing
from gankernels.bench import rows as bench_rows
from gankernels.bench.rows import Row, slug, stamp
from gankernels.bench.stock import to_stock
from gankernels.data import open_dataset
from gankernels.errors import InputError
from gankernels.metrics import evaluate
from gankernels.train import Config, Diverged, generate, load_generator, precision, train
from gankernels.train.cli import parse
from gankernels.train.loop import pick_device
from gankernels.train.step import build

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "quality"
SHEET = ROOT / "docs" / "images" / "quality.png"

#: Preset -> options of ``gankernels train`` on top of it: at its published width, two cores would take days.
RECIPES = {
    "biggan-32": "--images 50000 --n-dis 1 --batch 25 --g.ch 32 --g.widths 4 2 1 0.5 --g.lr 4e-4"
    " --d.ch 32 --d.widths 0.5 1 2 2 --d.lr 4e-4 --ema.kimg 2 --tick.images 10000",
    "r3gan-32": "--images 100000 --batch 32 --penalty-weight 2 --g.ch 32 --g.widths 3 1.5 0.75 0.25 --g.lr 5e-4"
    " --g.betas 0 0.99 --d.ch 32 --d.widths 0.25 0.75 1.5 3 --d.lr 5e-4 --d.betas 0 0.99 --ema.kimg 2"
    " --schedule.images 100000 --schedule.g-lr 1e-4 --schedule.d-lr 1e-4 --schedule.penalty-weight 0.2"
    " --schedule.ema-kimg 5 --tick.images 10000",
    "wgan-gp-32": "--images 120000 --n-dis 2 --batch 16 --g.ch 32 --g.widths 4 2 1 0.5 --g.lr 5e-4"
    " --d.ch 32 --d.widths 0.5 1 2 2 --d.lr 5e-4 --ema.kimg 2 --tick.images 20000",
    "dcgan-32": "--images 150000 --batch 32 --g.ch 32 --g.lr 5e-4 --d.ch 32 --d.lr 2e-4 --ema.kimg 2"
    " --tick.images 15000",
}

#: Whose layers compute a run. The trainer takes spectral norms in one call; in a stock run it is its reference's.
PROVIDERS = ("gankernels", "stock")

#: A row's run: what has the same is the same run, made again.
KEY = ("preset", "options", "data", "provider", "seed", "images", "precision", "fd_features", "samples", "device")
COLUMNS = (
    *("preset", "options", "data", "provider", "seed", "images", "threads", "seconds", "processor_seconds"),
    *("accuracy", "classifier_test_accuracy", "lowest_class", "lowest_class_accuracy"),
    *("seen_per_class_min", "seen_per_class_max", "seen_entropy_bits"),
    *("fd", "fd_features", "fd_floor", "samples", "g_parameters", "d_parameters"),
    *("precision", "device", "driver", "torch", "triton", "gankernels", "commit", "date"),
)


def configure(recipe: str, data: str, folder: Path, *, provider: str, seed: int, images: int | None = None) -> Config:
    """The config of a recipe, as ``gankernels train`` makes it from the same options.

    Raises:
        InputError: no such recipe, or one that the provider cannot train.
    """
    if recipe not in RECIPES:
        raise InputError(f"recipe: got {recipe!r}, expected one of {', '.join(RECIPES)}")
    options = ["--preset", recipe, "--data", data, "--seed", str(seed), *shlex.split(RECIPES[recipe])]
    config = parse([*options, *([] if images is None else ["--images", str(images)])]).config
    if provider == "stock":
        if config.penalty is not None:
            raise InputError(f"--provider: got stock for {recipe}, expected a recipe without a penalty, which is ours")
        config = replace(config, impl="reference")
    name = f"{recipe}-{data.replace(':', '-')}-{provider}-{config.images}-seed{seed}"
    return replace(config, out=str(folder / Path(name).name))


def measure(config: Config, *, provider: str, samples: int, machine: Row) -> Row:
    """Train ``config``, judge what it learnt, and give its row; ``machine`` is what :func:`stamp` says of it.

    Raises:
        Diverged: the training did.
        KeyboardInterrupt: a signal ended it.
    """
    wall, processor = time.perf_counter(), time.process_time()
    outcome = train(config, networks=_stock if provider == "stock" else build)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    if outcome.interrupted:
        raise KeyboardInterrupt
    device = pick_device(config.device)
    trained = load_generator(outcome.run, device=device)
    with torch.no_grad():
        found = evaluate(trained.generator, config.data, num_samples=samples)
    # The networks are built once more: a checkpoint's generator comes without its discriminator.
    players = build(config, num_classes=trained.generator.num_classes, channels=trained.generator.channels)
    dtype, _ = precision.resolve(config.precision, device)
    return machine | {
        "preset": config.preset,
        "options": RECIPES[config.preset],
        "data": config.data,
        "provider": provider,
        "seed": str(config.seed),
        "images": str(outcome.images),
        "threads": str(torch.get_num_threads()),
        "seconds": f"{wall:.1f}",
        "processor_seconds": f"{processor:.1f}",
        **_judged(found),
        "g_parameters": str(_parameters(players[0])),
        "d_parameters": str(_parameters(players[1])),
        "precision": {None: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype],
    }


def merged(rows: Sequence[Row], found: Row) -> list[Row]:
    """``rows`` with ``found`` in place of the row of the same run, or behind all of them."""
    key = [found[column] for column in KEY]
    same = [[row[column] for column in KEY] == key for row in rows]
    return [found if is_same else row for row, is_same in zip(rows, same, strict=True)] + ([] if any(same) else [found])


def read_csv(path: Path) -> list[Row]:
    """The rows that :func:`write_csv` wrote; none where there is no file.

    Raises:
        InputError: something else is there, which must not be lost.
    """
    return bench_rows.read_csv(path, COLUMNS) if path.exists() else []


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write ``rows`` with a header; the file is replaced at once, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bench_rows.write_csv(path, rows, COLUMNS)


def draw_sheet(configs: Sequence[Config], path: Path, *, columns: int = 5, scale: int = 2) -> None:
    """Real pictures and those of each run side by side as one PNG, a class in each row.

    Raises:
        InputError: a run is not there.
    """
    trained = [load_generator(config.out) for config in configs]
    first = trained[0].generator
    labels = torch.arange(first.num_classes).repeat_interleave(columns)
    real = open_dataset(configs[0].data, split="test", resolution=first.resolution, channels=first.channels)
    pictures = [torch.nonzero(real.labels == label)[:columns, 0] for label in range(first.num_classes)]
    blocks = {"real": real.images[torch.cat(pictures)]}
    for config, run in zip(configs, trained, strict=True):
        blocks[f"{config.preset}, {run.images:,} images"] = generate(run.generator, labels, seed=config.seed)
    sheet = _sheet(blocks, real.class_names, columns=columns, scale=scale)
    with replacing(path) as file:
        sheet.save(file, format="PNG", optimize=True)


def _sheet(blocks: dict[str, Tensor], class_names: Sequence[str], *, columns: int, scale: int) -> Image.Image:
    """``blocks`` of uint8 [K * columns, C, R, R], each under its name, with the names of the rows on the left."""
    font = ImageFont.load_default(size=17)
    side = next(iter(blocks.values())).shape[-1] * scale
    left = 12 + math.ceil(max(font.getlength(name) for name in class_names))
    top, gap, width = 30, 12, columns * side
    sheet = Image.new("RGB", (left + len(blocks) * (width + gap), top + len(class_names) * side), "white")
    pen = ImageDraw.Draw(sheet)
    for row, name in enumerate(class_names):
        pen.text((left - 8, top + (row + 0.5) * side), name, "black", font, anchor="rm")
    for i, (title, pictures) in enumerate(blocks.items()):
        x = left + i * (width + gap)
        pen.text((x + width / 2, top / 2), title, "black", font, anchor="mm")
        grid = pictures.unflatten(0, (-1, columns)).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)  # [H, W, C]
        block = Image.fromarray(grid.squeeze(2).numpy()).convert("RGB")
        sheet.paste(block.resize((width, block.height * scale), Image.Resampling.NEAREST), (x, top))
    return sheet


def _judged(found: dict[str, Any]) -> Row:
    """The figures of :func:`gankernels.metrics.evaluate` as columns."""
    shares = {name: share for name, share in found["accuracy_per_class"].items() if share is not None}
    lowest = min(shares, key=lambda name: shares[name])
    seen = list(found["seen_per_class"].values())
    entropy = -sum(n / sum(seen) * math.log2(n / sum(seen)) for n in seen if n)
    return {
        "accuracy": f"{found['accuracy']:.4f}",
        "classifier_test_accuracy": f"{found['classifier_test_accuracy']:.4f}",
        "lowest_class": lowest,
        "lowest_class_accuracy": f"{shares[lowest]:.4f}",
        "seen_per_class_min": str(min(seen)),
        "seen_per_class_max": str(max(seen)),
        "seen_entropy_bits": f"{entropy:.3f}",
        "fd": f"{found['fd']:.2f}",
        "fd_features": found["fd_features"],
        "fd_floor": f"{found['fd_floor']:.2f}",
        "samples": str(found["samples"]),
    }


def _stock(config: Config, **facts: int) -> tuple[Any, nn.Module]:
    generator, discriminator = build(config, **facts)
    return to_stock(generator), to_stock(discriminator)


def _parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def main(argv: Sequence[str] | None = None) -> int:
    """Train and judge, or draw; returns the exit code, 1 where a run diverged.

    Raises:
        InputError: no such recipe, a run that is there already, or one that is not there to be drawn.
    """
    parser = argparse.ArgumentParser(description="Trains presets on Fashion-MNIST and judges them.")
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help=f"some of {', '.join(RECIPES)}; default: all")
    parser.add_argument("--provider", choices=PROVIDERS, default="gankernels", help="default: gankernels")
    parser.add_argument("--seed", type=int, nargs="+", default=[0], help="a run each; default: 0")
    parser.add_argument("--images", type=int, metavar="N", help="instead of the recipe's")
    parser.add_argument("--samples", type=int, default=2048, metavar="N", help="to judge; default: 2048")
    parser.add_argument("--data", default="fashion-mnist", metavar="PATH", help="default: fashion-mnist")
    parser.add_argument("--threads", type=int, metavar="N", help="default: PyTorch's own number")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "quality", metavar="FOLDER", help="of the runs")
    parser.add_argument("--sheet", type=Path, nargs="?", const=SHEET, metavar="FILE", help="draw runs that are there")
    arguments = parser.parse_args(argv)
    provider: str = arguments.provider
    configs = [
        configure(recipe, arguments.data, arguments.runs, provider=provider, seed=seed, images=arguments.images)
        for recipe in arguments.recipes or RECIPES
        for seed in arguments.seed
    ]
    if arguments.sheet is not None:
        draw_sheet(configs, arguments.sheet)
        return 0
    # Before the threads are set: the device is the machine, whatever part of it a run takes.
    machine = stamp(pick_device(configs[0].device).type)
    path = RESULTS / f"{slug(machine['device'])}.csv"
    read_csv(path)  # a file that cannot be kept is known before the training
    for config in configs:
        if Path(config.out).exists():
            raise InputError(f"--runs: got a folder with {config.out} in it, expected none of this run: remove it")
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    for config in configs:
        try:
            found = measure(config, provider=provider, samples=arguments.samples, machine=machine)
        except Diverged as error:
            print(f"quality: {error}", file=sys.stderr)
            return 1
        write_csv(path, merged(read_csv(path), found))
        print(f"{config.preset}: accuracy {found['accuracy']}, {found['fd_features']} fd {found['fd']}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"quality: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
