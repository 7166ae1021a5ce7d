"""How the images and the labels of a data set are read, whatever kind of data set it is."""

from dataclasses import dataclass
from typing import TypedDict

from pah.core.config import require


@dataclass(frozen=True)
class ReadOptions:
    """How a data set is read. Runs, lessons and the functions of `pah.data` share these options.

    Args:
        column: The column of vectors (lists of numbers) of Parquet files or of a table in memory; None reads images.
        label_column: The column of the labels; None takes "label", "fine_label", the only ClassLabel or the only
            integers.
        test_split: Name of the split with the test images; None takes the first of test, valid, validation and val
            that has labels, or else a fixed fifth of each class's training images.
        skip_unreadable: Leave out images that cannot be read; `Source.skipped` lists them.
        follow_links: Read images to which a link or a path leads out of the data set's folder.
        max_megapixels: Largest number of pixels of one image, in millions, 1 to 10,000.

    Raises:
        InputError: a value is out of range.
    """

    label_column: str | None = None
    test_split: str | None = None
    skip_unreadable: bool = False
    follow_links: bool = False
    max_megapixels: int = 50
    column: str | None = None

    def __post_init__(self) -> None:
        require(self.column != "", "column", "the name of a column", self.column)
        require(self.test_split != "", "test_split", "the name of a split", self.test_split)
        require(1 <= self.max_megapixels <= 10_000, "max_megapixels", "1 to 10000", self.max_megapixels)


DEFAULT_READING = ReadOptions()


class ReadKeywords(TypedDict, total=False):
    """The fields of `ReadOptions` as keyword arguments of a function, all of them optional."""

    label_column: str | None
    test_split: str | None
    skip_unreadable: bool
    follow_links: bool
    max_megapixels: int
    column: str | None
