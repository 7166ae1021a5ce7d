"""Restoring a predictor from a learner's record and weights."""

from collections.abc import Mapping

import torch
from torch import Tensor

from pah.core.config import InputError
from pah.learner.predictor import Predictor
from pah.learner.store import STATISTICS_PREFIX, Record
from pah.learner.task_inference import QUANTILE_SHARES
from pah.methods.base import Method
from pah.models.backbone import Backbone
from pah.models.class_statistics import ClassStatistics
from pah.training.config import build_method


def restore_predictor(record: Record, tensors: Mapping[str, Tensor]) -> Predictor:
    """Return the predictor with saved weights and class statistics.

    Args:
        record: The learner's record.
        tensors: The network's weights and the class statistics, as `pah.learner.store.load` returns them.

    Raises:
        InputError: the weights do not fit the network that the record describes.
    """
    statistics = {
        name.removeprefix(STATISTICS_PREFIX): tensor
        for name, tensor in tensors.items()
        if name.startswith(STATISTICS_PREFIX)
    }
    weights = {name: tensor for name, tensor in tensors.items() if not name.startswith(STATISTICS_PREFIX)}
    _require_fitting(record, weights)
    method = _build_untrained(record)
    method.network.load_state_dict(weights, strict=True)
    if not statistics:
        return Predictor(record, method)
    sizes, features = method.network.sizes(range(len(record.tasks))), method.network.backbone.features
    return Predictor(record, method, ClassStatistics.from_tensors(statistics, sizes, features))


def _require_fitting(record: Record, weights: Mapping[str, Tensor]) -> None:
    """Raise InputError if the weights or the quantiles do not fit the network that the record describes."""
    try:
        with torch.device("meta"):  # shapes alone: a damaged record may describe a network larger than the memory
            expected = _build_untrained(record).network.state_dict()
    except (RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"learner: expected a network that can be built, got: {reason}") from None
    for name in sorted({*expected, *weights}):
        wanted, got = (list(tensors[name].shape) if name in tensors else "none" for tensors in (expected, weights))
        if wanted != got:
            raise InputError(
                f"weights: expected those of the network that is described, got {name} of shape {got} and not {wanted}"
            )
    if any(len(values) != len(QUANTILE_SHARES) for task in record.tasks for values in task.quantiles.values()):
        raise InputError(f"learner: expected {len(QUANTILE_SHARES)} quantiles of each score, got another number")


def _build_untrained(record: Record) -> Method:
    """Return the untrained method on a network with heads for all tasks of the record."""
    method = build_method(record.config, record.image_shape, start_weights=False)
    for module in method.network.modules():
        if isinstance(module, Backbone):
            module.interpolation = record.resizing.interpolation  # as in its lessons
    for task in record.tasks:
        method.network.grow(len(task.classes))
    method.task = len(record.tasks) - 1
    return method
