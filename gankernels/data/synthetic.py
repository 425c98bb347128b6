"""Procedural pictures with exact labels, of any size: a class is a shape, a hue and a pattern of stripes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

MIN_RESOLUTION, MAX_RESOLUTION = 4, 4096

_HUES = ("red", "orange", "yellow", "lime", "green", "jade", "cyan", "azure", "blue", "violet", "magenta", "rose")
_ANGLES = 6
_FREQUENCIES = 4

#: Coordinates (u, v) -> a field that is negative inside the shape; its slope is near 1 at the edge.
_SHAPES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "disc": lambda u, v: np.hypot(u, v) - 1,
    "square": lambda u, v: np.maximum(abs(u), abs(v)) - 0.85,
    "triangle": lambda u, v: np.maximum(abs(u) * 0.866 - v * 0.5, v) - 0.55,
    "ring": lambda u, v: abs(np.hypot(u, v) - 0.75) - 0.25,
    "cross": lambda u, v: np.minimum(np.maximum(abs(u), abs(v) + 0.68), np.maximum(abs(u) + 0.68, abs(v))) - 1,
    "diamond": lambda u, v: (abs(u) + abs(v) * 1.6 - 1.1) * 0.6,
    "bar": lambda u, v: np.maximum(abs(u) - 1, abs(v) - 0.3),
    "crescent": lambda u, v: np.maximum(np.hypot(u, v) - 1, 0.8 - np.hypot(u - 0.5, v)),
}
_SHAPE_NAMES = tuple(_SHAPES)

MAX_CLASSES = len(_SHAPES) * len(_HUES) * (1 + _ANGLES * _FREQUENCIES)

#: Pictures of one random generator. Part of the data set's definition: another number gives other pictures.
_CHUNK = 64


def class_name(label: int) -> str:
    """What the class shows, such as ``"red disc"`` or ``"blue ring, stripes 30 degrees x2"``."""
    shape, hue, stripes = _traits(np.array([label]))
    name = f"{_HUES[hue[0]]} {_SHAPE_NAMES[shape[0]]}"
    if stripes[0] == 0:
        return name
    frequency, angle = divmod(int(stripes[0]) - 1, _ANGLES)
    return f"{name}, stripes {angle * 180 // _ANGLES} degrees x{frequency + 1}"


def pictures(labels: np.ndarray, resolution: int, *, seed: int) -> Iterator[Tensor]:
    """uint8 chunks [n, 3, H, W], one picture for each label [N]; position, size, tilt and background are random.

    A picture depends on seed, index and label alone, so a shorter data set is the beginning of a longer one.
    """
    for chunk, start in enumerate(range(0, len(labels), _CHUNK)):
        yield torch.from_numpy(_draw(labels[start : start + _CHUNK], resolution, np.random.default_rng((seed, chunk))))


def _traits(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shape, hue and stripes of each class; neighbouring classes differ in shape and in hue."""
    block, shape = np.divmod(labels, len(_SHAPES))
    stripes, turn = np.divmod(block, len(_HUES))
    return shape, (shape * 5 + turn) % len(_HUES), stripes


def _draw(labels: np.ndarray, resolution: int, random: np.random.Generator) -> np.ndarray:
    # Every number is drawn for a whole chunk, so that a picture does not depend on how many follow it.
    noise = random.random((_CHUNK, 12), dtype=np.float32)[: len(labels), :, None, None]
    x, y, scale, tilt, light, phase = (noise[:, i] for i in range(6))
    top, bottom = noise[:, 6:9] * 0.45, noise[:, 9:12] * 0.45  # [n, 3, 1, 1]
    axis = (np.arange(resolution, dtype=np.float32) + 0.5) / resolution * 2 - 1
    radius = 0.4 + 0.3 * scale
    du = (axis[None, None, :] - (x - 0.5) * 0.6) / radius  # [n, H, W] by broadcasting
    dv = (axis[None, :, None] - (y - 0.5) * 0.6) / radius
    angle = (tilt - 0.5) * 0.6
    u, v = du * np.cos(angle) + dv * np.sin(angle), dv * np.cos(angle) - du * np.sin(angle)

    shape, hue, stripes = _traits(labels)
    distance = np.empty_like(u)
    for number in np.unique(shape):
        members = shape == number
        distance[members] = _SHAPES[_SHAPE_NAMES[number]](u[members], v[members])
    # One pixel of soft edge.
    cover = np.clip(0.5 - distance * radius * (resolution / 2), 0, 1)[:, None]

    ink = _hue_to_rgb(hue / len(_HUES))[:, :, None, None] * (0.75 + 0.25 * light[:, None])
    striped = np.flatnonzero(stripes)
    shade = np.ones_like(u)
    if len(striped):
        frequency, direction = np.divmod(stripes[striped] - 1, _ANGLES)
        turn = (direction * (np.pi / _ANGLES))[:, None, None].astype(np.float32)
        along = u[striped] * np.cos(turn) + v[striped] * np.sin(turn)
        wave = np.sin(along * (frequency + 1)[:, None, None].astype(np.float32) * 4 + phase[striped] * 6.2832)
        shade[striped] = 0.6 + 0.4 * np.clip(wave * 2, -1, 1)
    height = ((axis + 1) / 2)[None, None, :, None]
    background = top * (1 - height) + bottom * height
    image = background + cover * (ink * shade[:, None] - background)
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def _hue_to_rgb(hue: np.ndarray) -> np.ndarray:
    """Fully saturated RGB [n, 3] in [0, 1] of hues [n] in [0, 1)."""
    offsets = np.array([0.0, 2.0, 4.0])
    return np.clip(abs((hue[:, None] * 6 - offsets + 3) % 6 - 3) * -1 + 2, 0, 1).astype(np.float32)
