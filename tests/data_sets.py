"""Small data sets of noise for tests: image files, Parquet files, and the check that input is refused."""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from pah.core.config import InputError
from pah.data.sources import Source

NAMES = ["bird", "cat", "dog"]


@contextmanager
def refused(*parts: str) -> Iterator[None]:
    """Check that an InputError of one line is raised, which contains these parts."""
    with pytest.raises(InputError) as caught:
        yield
    assert "\n" not in str(caught.value)
    assert not [part for part in parts if part not in str(caught.value)], str(caught.value)


def picture(seed: int, size: tuple[int, int] = (6, 6)) -> Image.Image:
    """Return a colour image of noise, size (W, H)."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def save(image: Image.Image, file: Path) -> Path:
    """Write an image file and its folders."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file)
    return file


def class_folders(root: Path, counts: Mapping[str, int] | None = None, start: int = 0) -> Path:
    """Write a folder for each class with this many images, four of each of NAMES unless given."""
    for c, (name, count) in enumerate((counts or dict.fromkeys(NAMES, 4)).items()):
        for i in range(count):
            save(picture(start + 100 * c + i), root / name / f"{i:02}.png")
    return root


def encoded(seed: int) -> dict[str, Any]:
    """Return an image as Parquet files contain it."""
    buffer = io.BytesIO()
    picture(seed).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def features(names: Sequence[str] | None = NAMES, label: str = "label") -> datasets.Features:
    """Return the columns image and label; with `names` None, labels are whole numbers."""
    kind = datasets.Value("int64") if names is None else datasets.ClassLabel(names=list(names))
    return datasets.Features({"image": datasets.Image(), label: kind})


def write_parquet(
    file: Path, labels: Sequence[Any], kinds: datasets.Features | None = None, images: Sequence[Any] | None = None
) -> Path:
    """Write a Parquet file with an image for each label; `kinds` None leaves out the metadata of `datasets`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    columns = {"image": images or [encoded(i) for i in range(len(labels))], "label": list(labels)}
    pyarrow.parquet.write_table(pyarrow.table(columns, schema=kinds and kinds.arrow_schema), file)
    return file


def data_set(labels: Sequence[Any], names: Sequence[str] | None = NAMES) -> datasets.Dataset:
    """Return a data set in memory with an image for each label."""
    columns = {"image": [picture(i) for i in range(len(labels))], "label": list(labels)}
    return datasets.Dataset.from_dict(columns, features=features(names))


def counts(source: Source) -> tuple[dict[str, int], dict[str, int]]:
    """Return the number of training and of test images of each class."""
    parts = (source.train, source.test)
    numbers = [part.labels.bincount(minlength=len(source.class_names)).tolist() for part in parts]
    train, test = (dict(zip(source.class_names, each, strict=True)) for each in numbers)
    return train, test
