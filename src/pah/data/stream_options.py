"""The options by which a data set becomes a stream of tasks."""

from dataclasses import dataclass
from typing import Literal

from pah.core.config import require

ClassOrder = Literal["seed", "natural"] | tuple[int, ...]


@dataclass(frozen=True)
class StreamOptions:
    """How a data set becomes a stream of tasks.

    Args:
        tasks: Number of tasks; the benchmark's own number unless given. If the classes do not divide evenly, the
            first tasks get one class more.
        first: Learn only this number of tasks, the first ones; all unless given.
        classes: Use only this number of classes, the first ones of the class order; all unless given.
        class_order: Shuffle the classes by the run's seed ("seed"), take them in the data set's own order ("natural"),
            or in the order of these labels, each once, such as 3,1,4,0; classes that are not among them are not used.
        order_seed: Shuffle the classes by this seed instead of the run's, so that runs with several seeds have one
            class order: the order that the run's seed of this value gives.
        validation: Share of each class's training images that is held out, never trained on.
        sizes: Number of classes of each task, for tasks of unequal size, such as 50,10x5 for one task of 50 classes and
            five of 10; `tasks` is then their number. They add up to `classes`, or to the number of labels in
            `class_order`, if one is given, and else to at most all classes.
        images: Largest number of training images of each class, drawn by the seed from those that are not held out.
    """

    tasks: int | None = None
    first: int | None = None
    classes: int | None = None
    class_order: ClassOrder = "seed"
    validation: float = 0.0
    sizes: tuple[int, ...] | None = None
    images: int | None = None
    order_seed: int | None = None

    def __post_init__(self) -> None:
        require(self.tasks is None or self.tasks >= 1, "stream.tasks", "at least 1", self.tasks)
        require(self.first is None or self.first >= 1, "stream.first", "at least 1", self.first)
        require(self.classes is None or self.classes >= 2, "stream.classes", "at least 2", self.classes)
        require(0 <= self.validation < 1, "stream.validation", "at least 0 and below 1", self.validation)
        sizes = self.sizes
        require(sizes is None or min(sizes, default=0) >= 2, "stream.sizes", "at least 2 classes a task", sizes)
        require(self.images is None or self.images >= 1, "stream.images", "at least 1", self.images)
        self._check_order()

    def _check_order(self) -> None:
        """Raise InputError unless the class order and its seed are valid for some data set."""
        order, order_seed = self.class_order, self.order_seed
        if isinstance(order, tuple):
            require(len(order) >= 2, "stream.class_order", "at least 2 labels", order)
            repeated = next((label for k, label in enumerate(order) if label in order[:k]), None)
            require(repeated is None, "stream.class_order", "each label once, and not again", repeated)
        require(order_seed is None or 0 <= order_seed < 2**63, "stream.order_seed", "0 to 2^63 - 1", order_seed)
        by_seed = order_seed is None or order == "seed"
        require(by_seed, "stream.order_seed", "none, as stream.class_order is not seed", order_seed)
