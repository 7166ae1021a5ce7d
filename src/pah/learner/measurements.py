"""What a measured accuracy was measured on, and which accuracies of a learner's history may be compared.

N: images, C: channels, H x W: pixels.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from pah.data.sources import Images
from pah.learner.store import Lesson

DIGEST_BYTES = 8  # short, because a long history stores one for each task and lesson


class Measurement(NamedTuple):
    """An accuracy and what it was measured on.

    Attributes:
        accuracy: Percent of the images whose class was predicted, with the task given.
        images: Number of images; None if it was not stored.
        fingerprint: Fingerprint of the images and their classes; None if it was not stored.
    """

    accuracy: float
    images: int | None
    fingerprint: str | None


class Comparison(NamedTuple):
    """The first and the last accuracy that were measured on the same images.

    Attributes:
        then: The first one, in percent; None if it is not known to be of the same images.
        last: The last one, in percent; None if there is none.
        images: Number of images; None if it was not stored.
    """

    then: float | None
    last: float | None
    images: int | None


def fingerprint(images: Images, class_names: Sequence[str]) -> str:
    """Return a hash of images with their classes. It does not depend on the order of images and classes.

    Args:
        images: Pixels (N, C, H, W) and labels (N,).
        class_names: The name of label y is `class_names[y]`.
    """
    digests = []
    for pixels, label in zip(images.pixels.cpu(), images.labels.tolist(), strict=True):
        content = class_names[label].encode(errors="surrogatepass") + b"\0" + pixels.numpy().tobytes()
        digests.append(hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest())
    return hashlib.blake2b(b"".join(sorted(digests)), digest_size=DIGEST_BYTES).hexdigest()


def measurements(history: Sequence[Lesson], task: str) -> list[Measurement]:
    """Return all accuracies measured on a task since it was last taught, in order.

    A later lesson may have two: before and after it, on the same images.
    """
    taught = [i for i, lesson in enumerate(history) if lesson.name == task]
    return [
        Measurement(accuracies[task], lesson.images.get(task), lesson.fingerprints.get(task))
        for lesson in history[taught[-1] if taught else 0 :]
        for accuracies in (lesson.before, lesson.accuracies)
        if task in accuracies
    ]


def compare(history: Sequence[Lesson], task: str) -> Comparison | None:
    """Return the last accuracy measured on a task, and the first one on the same images; None without any.

    Accuracies on other images are left out, because a difference from them says nothing about forgetting.
    """
    measured = measurements(history, task)
    if not measured:
        return None
    last = measured[-1]
    if len(measured) == 1:
        return Comparison(last.accuracy, last.accuracy, last.images)
    same = [each for each in measured if last.fingerprint is not None and each.fingerprint == last.fingerprint]
    return Comparison(same[0].accuracy if same else None, last.accuracy, last.images)
