"""Rows as ``gankernels bench`` makes them, with times of the test's choice."""

from __future__ import annotations

from gankernels.bench.providers import PEERS
from gankernels.bench.rows import COLUMNS, Row

STAMP = {
    "device": "Test CPU, 2 threads, avx2",
    "torch": "2.13.0+cpu",
    "triton": "3.9.0",
    "gankernels": "0.1.0",
    "commit": "abc1234",
    "date": "2026-01-02",
}
CEILINGS = {
    "device": "cpu",
    "copy": [[131072.0, 180e9], [268435456.0, 34.7e9]],
    "gemm": {"float32": 151e9, "bfloat16": 98e9},
    "launch": 4.1e-6,
    "launch_outside": 4.1e-6,
}
#: What each provider takes in :func:`group`, in ms; the best peer is eager-best, and ours is twice as fast.
TIMES = {"eager": 12.0, "eager-best": 10.0, "compile": 40.0, "gankernels-cpu": 5.0}
_WAYS = {"eager": "float32", "eager-best": "float32 channels_last", "compile": "default"}


def group(times: dict[str, float | str] | None = None, *, band: float = 0.02, **columns: str) -> list[Row]:
    """The rows of one group: provider -> its median in ms, or its verdict if that is "wrong: ..." or "error: ...".

    p20 and p80 lie ``band`` / 2 of the median on either side. ``columns`` replaces what all the rows share.
    """
    times = dict(times or TIMES)
    known = {name: ms for name, ms in times.items() if not isinstance(ms, str)}
    best = min((known[name] for name in PEERS if name in known), default=None)
    rows = []
    for provider, ms in times.items():
        row = dict.fromkeys(COLUMNS, "") | STAMP
        row |= {"op": "scale", "position": "Net G block 1", "shape": "8x16x4x4", "dtype": "float32"}
        row |= {"layout": "contiguous" if provider == "eager" else "channels_last", "mode": "forward+backward"}
        row |= {"provider": provider, "impl": _WAYS.get(provider, provider.removeprefix("gankernels-"))}
        row |= {"floor_kind": "memory 34.7 GB/s", "correct": ms if isinstance(ms, str) else "yes"}
        if not isinstance(ms, str):
            row |= {"ms": f"{ms:.5g}", "ms_p20": f"{ms * (1 - band / 2):.5g}", "ms_p80": f"{ms * (1 + band / 2):.5g}"}
            row["speedup_vs_eager"] = f"{known['eager'] / ms:.2f}" if "eager" in known else ""
            row["speedup_vs_best_peer"] = f"{best / ms:.2f}" if best else ""
            row |= {"floor_share": f"{2.0 / ms:.3f}", "peak_mib": "12.50", "saved_mib": "3.5"}
        rows.append(row | columns)
    return rows


def scaled(times: dict[str, float], by: float) -> dict[str, float | str]:
    """``times``, all multiplied ``by`` the same."""
    return {name: ms * by for name, ms in times.items()}
