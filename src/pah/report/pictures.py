"""Prototypes as pictures: the image that each started from, its start, as learned in its own task, and now.

C: classes of a task; s: side of a prototype.
"""

import base64
import io
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pah.report.exhibit import Cell, Exhibit, Table, drawing
from pah.report.rundata import Run

Pixels = NDArray[np.uint8]  # (H, W, 3)

SIDE = 64  # pixels of a picture in a page, at most
EXACT = 32  # pixels of a side, up to which a picture is put into a page without loss
SHOWN = 200  # classes, at most
MOMENTS = ("image", "start", "learned", "now")
CELL = 0.34  # inches of a picture in the figure


class Portrait(NamedTuple):
    """A class's prototype at each of `MOMENTS`, as a data URI; None where it was not recorded."""

    name: str
    pictures: Sequence[str | None]


class Gallery(NamedTuple):
    """The prototypes of a task."""

    task: int
    portraits: Sequence[Portrait]


def galleries(run: Run) -> list[Gallery]:
    """The prototypes of the first classes, as many as a page should hold, by task."""
    return [
        Gallery(k, [Portrait(name, [None if p is None else _data_uri(p) for p in of]) for name, of in portraits])
        for k, portraits in _portraits(run)
    ]


def figure(run: Run) -> Exhibit:
    """All these pictures in one figure: a column a class, a row a moment, a block a task."""
    tasks = list(_portraits(run))
    wide = max(len(portraits) for _, portraits in tasks)
    height = (len(MOMENTS) * CELL + 0.35) * len(tasks)
    with drawing(max(4.2, 1.4 + CELL * wide), height, rows=len(tasks)) as (drawn, panels):
        for axes, (k, portraits) in zip(panels, tasks, strict=True):
            axes.imshow(_montage([of for _, of in portraits]), interpolation="nearest", aspect="equal")
            axes.set_title(f"task {k + 1}", loc="left", fontsize=8)
            axes.set_yticks([(row + 0.5) * SIDE for row in range(len(MOMENTS))], MOMENTS, fontsize=6)
            axes.set_xticks([])
            axes.grid(visible=False)
            for spine in axes.spines.values():
                spine.set_visible(False)
    words = (
        f"Prototypes of {sum(len(of) for _, of in tasks)} classes, each a small picture at {len(MOMENTS)} moments: "
        f"{', '.join(MOMENTS)}."
    )
    titles = ["task", "class", "moved in its task", "moved since", "correlation of start and now"]
    rows = [_numbers(run, k, c, name) for k, of in tasks for c, (name, _) in enumerate(of)]
    table = Table(
        "Distances relative to the prototype's norm before; correlation over its pixels", titles, rows, digits=4
    )
    return Exhibit("prototypes", "Prototypes", words, drawn, table)


def _numbers(run: Run, task: int, label: int, name: str) -> list[Cell]:
    """How far a class's prototype moved, and how alike it still is to its start; None where not recorded."""
    recorded, now = run.prototypes[task], run.prototypes_now[task][label]
    start = recorded.start[label] if recorded and recorded.start is not None else None
    learned = recorded.learned[label] if recorded and recorded.learned is not None else None
    alike = None if start is None else float(torch.corrcoef(torch.stack([start.flatten(), now.flatten()]))[0, 1])
    return [str(task + 1), name, moved(start, learned), moved(learned, now), alike]


def moved(before: Tensor | None, after: Tensor | None) -> float | None:
    """The distance, relative to the norm before; None where either was not recorded."""
    return None if before is None or after is None else float((after - before).norm() / before.norm())


def _portraits(run: Run) -> Iterator[tuple[int, list[tuple[str, list[Pixels | None]]]]]:
    """For each task, its classes' names and pictures at each moment."""
    left = SHOWN
    for k, (recorded, now) in enumerate(zip(run.prototypes, run.prototypes_now, strict=True)):
        if recorded is None or not left:
            continue
        names = run.names[k] if run.names else [f"class {label + 1}" for label in range(len(now))]
        moments: list[Sequence[Pixels] | None] = [
            None if recorded.images is None else [_rgb(image) for image in recorded.images],
            *(
                None if of is None else [_rgb(recorded.normalization.undone(p)) for p in of]
                for of in (recorded.start, recorded.learned, now)
            ),
        ]
        shown = min(left, len(now))
        left -= shown
        yield k, [(names[c], [None if of is None else of[c] for of in moments]) for c in range(shown)]


def _rgb(image: Tensor) -> Pixels:
    """uint8 (1 or 3, H, W) -> (H, W, 3), no side longer than `SIDE`."""
    pixels: Pixels = image.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
    if max(pixels.shape) <= SIDE:
        return pixels
    picture = Image.fromarray(pixels)
    picture.thumbnail((SIDE, SIDE))
    return np.asarray(picture)


def _data_uri(pixels: Pixels) -> str:
    kind = "png" if max(pixels.shape) <= EXACT else "jpeg"
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, kind, optimize=True, **({} if kind == "png" else {"quality": 88}))
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"


def _montage(classes: Sequence[Sequence[Pixels | None]]) -> Pixels:
    """Pictures in rows by moment and columns by class, each in a square of `SIDE` with a white rim."""
    whole = np.full((len(MOMENTS) * SIDE, len(classes) * SIDE, 3), 255, np.uint8)
    inner = SIDE - 4
    for column, pictures in enumerate(classes):
        for row, pixels in enumerate(pictures):
            if pixels is not None:
                square = np.asarray(Image.fromarray(pixels).resize((inner, inner), Image.Resampling.NEAREST))
                top, left = row * SIDE + 2, column * SIDE + 2
                whole[top : top + inner, left : left + inner] = square
    return whole
