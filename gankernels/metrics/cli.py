"""``gankernels evaluate``: the metrics of a trained run, as text or JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

from gankernels._arguments import ArgumentParser
from gankernels.errors import InputError
from gankernels.metrics.features import FEATURES, LABELS


def main(argv: list[str]) -> int:
    """Run ``gankernels evaluate ARGV`` and return its exit code.

    Raises:
        InputError: what was given cannot be used; one line.
    """
    arguments = _parser().parse_args(argv)
    import torch

    from gankernels.metrics.evaluation import evaluate
    from gankernels.train import load_generator

    device = _device(arguments.device)
    trained = load_generator(arguments.run, ema=not arguments.no_ema, device=device)
    progress = _Progress()
    try:
        with torch.no_grad():
            result = evaluate(
                trained.generator,
                arguments.data or trained.data,
                num_samples=arguments.samples,
                seed=arguments.seed,
                metrics=tuple(name.strip() for name in arguments.metrics.split(",") if name.strip()),
                features=arguments.features,
                batch_size=arguments.batch,
                progress=progress,
            )
    finally:
        progress.clear()
    result = {"run": str(arguments.run), "images": trained.images, "ema": not arguments.no_ema, **result}
    print(json.dumps(result, allow_nan=False) if arguments.json else _text(result))
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser("evaluate", "Accuracy and Frechet distance of a trained generator's samples.")
    parser.add_argument("--run", required=True, metavar="DIR", help="the run's folder, as `gankernels train` made it")
    parser.add_argument("--data", metavar="PATH", help="real data to compare with (default: what the run trained on)")
    parser.add_argument("--metrics", default="fd,accuracy", help="comma-separated: fd, accuracy (default: both)")
    parser.add_argument("--samples", type=int, default=2048, metavar="N", help="pictures to make (default: 2048)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the samples (default: 0)")
    parser.add_argument("--features", choices=FEATURES, help="of fd (default: the first that is installed)")
    parser.add_argument("--no-ema", action="store_true", help="the trained weights instead of their moving average")
    parser.add_argument("--batch", type=int, default=256, metavar="N", help="pictures at a time (default: 256)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: the GPU if there is one)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _device(name: str | None) -> Any:
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise InputError(f"device: got {name!r}, expected a device that torch can use here, such as cpu") from None
    return device


def _text(result: dict[str, Any]) -> str:
    pixels = {1: "grey", 3: "RGB"}.get(result["channels"], f"{result['channels']} channels")
    side = result["resolution"]
    weights = "moving average of the weights" if result["ema"] else "weights as they are, no moving average"
    rows = [
        ("run", f"{result['run']}, {result['images']:,} images seen, {weights}"),
        ("data", f"{result['data']}, {result['num_classes']} classes, {side}x{side} {pixels}"),
        ("samples", f"{result['samples']:,}, seed {result['seed']}"),
    ]
    if "accuracy" in result:
        judge = f"(the classifier on real test pictures: {result['classifier_test_accuracy']:.4f})"
        rows.append(("accuracy", f"{result['accuracy']:.4f}  {judge}"))
        shares = [(share, name) for name, share in result["accuracy_per_class"].items() if share is not None]
        rows.append(("lowest classes", ", ".join(f"{name} {share:.2f}" for share, name in sorted(shares)[:3])))
    if "fd" in result:
        floor = f"({result['fd_floor_images']:,} real test pictures: {result['fd_floor']:.2f})"
        rows.append((LABELS[result["fd_features"]], f"{result['fd']:.2f}  {floor}"))
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value}" for name, value in rows]
    return "\n".join([*lines, *(f"note: {line}" for line in result["warnings"])])


class _Progress:
    """The newest line of progress on a terminal's standard error; silent elsewhere, for logs and pipes."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()

    def __call__(self, line: str) -> None:
        if self._shown:
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
