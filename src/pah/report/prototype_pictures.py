"""Prototypes as pictures: the image that each started from, its start, after its own task, and at present.

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

from pah.report.charts import CellValue, Chart, Table, new_figure
from pah.report.run_data import Run

Pixels = NDArray[np.uint8]  # (H, W, 3)

MAX_SIDE = 64  # pixels of a picture in a page
MAX_LOSSLESS_SIDE = 32  # pixels; larger pictures are put into a page as JPEG
MAX_CLASSES = 200  # shown in a page
MOMENTS = ("image", "start", "learned", "now")
CELL_INCHES = 0.34  # side of a picture in the figure


class Portrait(NamedTuple):
    """A class's prototype at each of `MOMENTS`, as a data URI; None where it was not recorded."""

    name: str
    pictures: Sequence[str | None]


class Gallery(NamedTuple):
    """The prototypes of a task."""

    task: int
    portraits: Sequence[Portrait]


def galleries(run: Run) -> list[Gallery]:
    """Return the prototypes of the first `MAX_CLASSES` classes, by task."""
    return [
        Gallery(k, [Portrait(name, [None if p is None else _data_uri(p) for p in pictures]) for name, pictures in task])
        for k, task in _pictures_by_task(run)
    ]


def prototype_figure(run: Run) -> Chart:
    """Return all these pictures in one figure: a column per class, a row per moment, a block per task."""
    tasks = list(_pictures_by_task(run))
    most_classes = max(len(task) for _, task in tasks)
    height = (len(MOMENTS) * CELL_INCHES + 0.35) * len(tasks)
    with new_figure(max(4.2, 1.4 + CELL_INCHES * most_classes), height, rows=len(tasks)) as (figure, panels):
        for axes, (k, task) in zip(panels, tasks, strict=True):
            axes.imshow(_montage([pictures for _, pictures in task]), interpolation="nearest", aspect="equal")
            axes.set_title(f"task {k + 1}", loc="left", fontsize=8)
            axes.set_yticks([(row + 0.5) * MAX_SIDE for row in range(len(MOMENTS))], MOMENTS, fontsize=6)
            axes.set_xticks([])
            axes.grid(visible=False)
            for spine in axes.spines.values():
                spine.set_visible(False)
    words = (
        f"Prototypes of {sum(len(task) for _, task in tasks)} classes, each a small picture at {len(MOMENTS)} moments: "
        f"{', '.join(MOMENTS)}."
    )
    titles = ["task", "class", "moved in its task", "moved since", "correlation of start and now"]
    rows = [_distance_row(run, k, label, name) for k, task in tasks for label, (name, _) in enumerate(task)]
    caption = "Distances relative to the prototype's norm before; correlation over its pixels"
    return Chart("prototypes", "Prototypes", words, figure, Table(caption, titles, rows, digits=4))


def _distance_row(run: Run, task: int, label: int, name: str) -> list[CellValue]:
    """Return how far a class's prototype moved and its correlation with its start; None where not recorded."""
    recorded, now = run.prototypes[task], run.prototypes_now[task][label]
    start = recorded.start[label] if recorded and recorded.start is not None else None
    learned = recorded.learned[label] if recorded and recorded.learned is not None else None
    correlation = None if start is None else float(torch.corrcoef(torch.stack([start.flatten(), now.flatten()]))[0, 1])
    return [str(task + 1), name, relative_distance(start, learned), relative_distance(learned, now), correlation]


def relative_distance(before: Tensor | None, after: Tensor | None) -> float | None:
    """Return the distance of two prototypes, relative to the norm of the first; None if either is None."""
    return None if before is None or after is None else float((after - before).norm() / before.norm())


def _pictures_by_task(run: Run) -> Iterator[tuple[int, list[tuple[str, list[Pixels | None]]]]]:
    """Yield each task with the names of its classes and their pictures at each moment."""
    classes_left = MAX_CLASSES
    for k, (recorded, now) in enumerate(zip(run.prototypes, run.prototypes_now, strict=True)):
        if recorded is None or not classes_left:
            continue
        names = run.names[k] if run.names else [f"class {label + 1}" for label in range(len(now))]
        moments: list[Sequence[Pixels] | None] = [
            None if recorded.images is None else [_to_pixels(image) for image in recorded.images],
            *(
                None if prototypes is None else [_to_pixels(recorded.normalization.denormalize(p)) for p in prototypes]
                for prototypes in (recorded.start, recorded.learned, now)
            ),
        ]
        shown = min(classes_left, len(now))
        classes_left -= shown
        yield k, [(names[c], [None if moment is None else moment[c] for moment in moments]) for c in range(shown)]


def _to_pixels(image: Tensor) -> Pixels:
    """Convert uint8 (1 or 3, H, W) to (H, W, 3), reduced to at most `MAX_SIDE` pixels per side."""
    pixels: Pixels = image.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
    if max(pixels.shape) <= MAX_SIDE:
        return pixels
    picture = Image.fromarray(pixels)
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    return np.asarray(picture)


def _data_uri(pixels: Pixels) -> str:
    """Return a picture as the address of an image element."""
    kind = "png" if max(pixels.shape) <= MAX_LOSSLESS_SIDE else "jpeg"
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, kind, optimize=True, **({} if kind == "png" else {"quality": 88}))
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"


def _montage(classes: Sequence[Sequence[Pixels | None]]) -> Pixels:
    """Return one picture with a row per moment and a column per class, each in a square with a white border."""
    montage = np.full((len(MOMENTS) * MAX_SIDE, len(classes) * MAX_SIDE, 3), 255, np.uint8)
    inner = MAX_SIDE - 4
    for column, pictures in enumerate(classes):
        for row, pixels in enumerate(pictures):
            if pixels is not None:
                square = np.asarray(Image.fromarray(pixels).resize((inner, inner), Image.Resampling.NEAREST))
                top, left = row * MAX_SIDE + 2, column * MAX_SIDE + 2
                montage[top : top + inner, left : left + inner] = square
    return montage
