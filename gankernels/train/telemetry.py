"""What a run says about itself: ``stats.jsonl`` always, TensorBoard when asked, a progress bar or plain lines."""

from __future__ import annotations

import contextlib
import json
import math
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gankernels import _files


class Diverged(RuntimeError):
    """A loss is no longer finite; nothing was saved from then on."""


class Telemetry:
    """Means of the steps' scalars and the time of each phase, from one tick to the next.

    Scalars are summed on the device and phases timed with events there: the host waits for the device at a tick only.
    """

    def __init__(self, run: Path, device: torch.device, *, tensorboard: bool = False) -> None:
        self.path = run / "stats.jsonl"
        self.device = device
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._phases: dict[str, tuple[float, int]] = {}  # milliseconds and calls
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._tick_images, self._tick_seconds = 0, 0.0  # the tick so far, in this process and those before it
        self._seconds = 0.0  # the run up to this process
        self._started = self._resumed = time.perf_counter()
        self._writer = _tensorboard_writer(run) if tensorboard else None

    def add(self, scalars: dict[str, Tensor]) -> None:
        """Add one step's scalars (fp32, on the device)."""
        for name, value in scalars.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the block as part of the phase ``name``."""
        if self.device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            yield
            end.record()
            self._events.append((name, start, end))
        else:
            begin = time.perf_counter()
            yield
            self._add_phase(name, (time.perf_counter() - begin) * 1e3)

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of the run so far, those before a resume included."""
        return self._seconds + time.perf_counter() - self._started

    def tick(self, images: int, scheduled: Mapping[str, float]) -> dict[str, Any]:
        """Close a tick: wait for the device, write its line, ``scheduled`` values included, and start the next one.

        Raises:
            Diverged: a scalar is not finite. The line is written first.
        """
        self._collect()
        shown = images - self._tick_images
        rate = shown / max(self._tick_seconds, 1e-9)
        line = {
            "images": images,
            "seconds": round(self.seconds, 3),
            **{name: float(total) / self._counts[name] for name, total in self._sums.items()},
            **scheduled,
            "images_per_second": round(rate, 2),
            "s_per_kimg": round(1000 / rate, 4) if rate > 0 else None,
            "phase_ms": {name: round(ms / calls, 3) for name, (ms, calls) in self._phases.items()},
            "peak_memory_mib": round(_peak_memory_mib(self.device), 1),
        }
        bad = [name for name, value in line.items() if isinstance(value, float) and not math.isfinite(value)]
        line.update(dict.fromkeys(bad))  # JSON has no NaN
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self._writer is not None:
            for name, value in line.items():
                if isinstance(value, (int, float)) and name != "images":
                    self._writer.add_scalar(name, value, images)
        if bad:
            raise Diverged(f"{', '.join(bad)} is no longer finite after {images} images; try a lower --d.lr or fp32")
        self._sums, self._counts, self._phases = {}, {}, {}
        self._tick_images, self._tick_seconds = images, 0.0
        return line

    def start(self) -> None:
        """The clock of images/s runs from here: what a tick itself costs is not in it."""
        self._resumed = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """The tick so far, with which a resumed run goes on."""
        self._collect()
        return {
            "seconds": self.seconds,
            "tick_images": self._tick_images,
            "tick_seconds": self._tick_seconds,
            "sums": dict(self._sums),
            "counts": dict(self._counts),
            "phases": dict(self._phases),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state``."""
        self._seconds, self._started = state["seconds"], time.perf_counter()
        self._tick_images, self._tick_seconds = state["tick_images"], state["tick_seconds"]
        self._sums = {name: total.to(self.device) for name, total in state["sums"].items()}
        self._counts, self._phases = dict(state["counts"]), dict(state["phases"])

    def rewind(self, images: int) -> None:
        """Drop the lines of ``stats.jsonl`` after ``images`` images: the steps behind them are about to be repeated."""
        if self.path.exists():
            kept = [line for line in read_stats(self.path) if line["images"] <= images]
            with _files.replacing(self.path) as file:
                file.writelines(json.dumps(line).encode() + b"\n" for line in kept)

    def close(self) -> None:
        """Flush what is open."""
        if self._writer is not None:
            self._writer.close()

    def _collect(self) -> None:
        """Wait for the device and bring the clocks up to date."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            for name, start, end in self._events:
                self._add_phase(name, start.elapsed_time(end))
            self._events.clear()
        now = time.perf_counter()
        self._tick_seconds += now - self._resumed
        self._resumed = now

    def _add_phase(self, name: str, milliseconds: float) -> None:
        total, calls = self._phases.get(name, (0.0, 0))
        self._phases[name] = total + milliseconds, calls + 1


def read_stats(path: Path) -> list[dict[str, Any]]:
    """The lines of a ``stats.jsonl``; one that a killed process left half-written is passed over."""
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            line = json.loads(text)
            if isinstance(line, dict) and "images" in line:
                lines.append(line)
    return lines


class Progress:
    """A bar with images/s and the time left where stderr is a terminal, a line a tick elsewhere. A context manager."""

    def __init__(self, images: int, total: int) -> None:
        self.total = total
        self._bar: Any = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            columns = (
                BarColumn(),
                TextColumn("{task.completed:,.0f}/{task.total:,.0f} images"),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task("train", total=total, completed=images, rate="")
        self._start, self._start_images = time.perf_counter(), images

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, images: int) -> None:
        """Show that ``images`` were reached; costs nothing where there is no terminal."""
        if self._bar is not None:
            rate = (images - self._start_images) / max(time.perf_counter() - self._start, 1e-9)
            self._bar.update(self._task, completed=min(images, self.total), rate=f"{rate:,.1f} images/s")

    def tick(self, line: dict[str, Any], scheduled: Mapping[str, float]) -> None:
        """Show a tick's line, with the values that move."""
        left = max(self.total - line["images"], 0) / max(line["images_per_second"], 1e-9)
        values = "".join(f"{name} {value:.3g}  " for name, value in scheduled.items())
        text = (
            f"{line['images']:>10,} images  d_loss {line['d_loss']:.3f}  g_loss {line['g_loss']:.3f}  "
            f"D(real) {line['d_real']:+.2f}  D(fake) {line['d_fake']:+.2f}  {values}"
            f"{line['images_per_second']:,.1f} images/s  {_clock(left)} left"
        )
        self.note(text)

    def note(self, text: str) -> None:
        """One line to stderr, above the bar where there is one."""
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


def _peak_memory_mib(device: torch.device) -> float:
    """Most memory held so far: by torch on a GPU, by the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def _tensorboard_writer(run: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(run / "tensorboard"))
