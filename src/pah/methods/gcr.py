"""Gradient Coreset Replay: store weighted samples whose gradient approximates the gradient of all samples.

n: number of samples of a class, K: number of samples stored of it, D: number of features, C: number of classes of the
task, G: number of entries of a gradient.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pah.core.config import require
from pah.data.task import Batch, Task
from pah.methods.buffer import Samples
from pah.methods.replay import DERpp, DERppOptions, training_samples
from pah.models.modes import evaluating
from pah.models.network import apply_heads

PASS_SIZE = 500  # images in one pass through the network without gradients


@dataclass(frozen=True)
class GCROptions(DERppOptions):
    """Options of Gradient Coreset Replay.

    Args:
        alpha: Weight of the squared change of the stored images' logits.
        beta: Weight of the cross entropy of stored images.
        ridge: λ, the penalty on large weights of stored samples, relative to the mean squared gradient of a sample.
    """

    alpha: float = 1.0
    beta: float = 1.0
    ridge: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.ridge >= 0, "method.ridge", "at least 0", self.ridge)


class GCR(DERpp):
    """Gradient Coreset Replay (Tiwari et al., CVPR 2022) with the losses of DER++ and weighted samples.

    At the end of a task the buffer is selected again, class by class, from the stored samples and the task's images.
    The K samples and weights w ≥ 0 minimise ‖Σ_all v_i g_i - Σ_stored w_i g_i‖² + λ ‖w‖², by orthogonal matching
    pursuit. g_i is the gradient of sample i's cross entropy for the head of its task, v_i the weight of the sample so
    far.
    """

    options: GCROptions

    def store_batch(self, batch: Batch, logits: Tensor) -> None:
        """Do nothing: the buffer changes at the end of a task only."""

    @torch.no_grad()
    def end_task(self, task: Task) -> None:
        """Select the buffer. The task's own images are stored with their current logits."""
        self.normalization = task.normalization
        new = training_samples(task).to(self.device)
        with evaluating(self.network):
            logits = [self.network(self.normalization(part), [task.index]) for part in new.pixels.split(PASS_SIZE)]
            self.rebalance(dataclasses.replace(new, logits=torch.cat(logits)), self.select)

    def select(self, samples: Samples, count: int) -> Samples:
        """Return the coreset of one class's samples: at most `count` of them, with weights."""
        if len(samples) <= count:
            return samples
        gradients = self.head_gradients(samples).cpu().double().numpy()
        indices, weights = select_coreset(gradients, samples.weights.cpu().double().numpy(), count, self.options.ridge)
        new_weights = torch.from_numpy(weights).float().to(self.device)
        return dataclasses.replace(samples[torch.from_numpy(indices)], weights=new_weights)

    def head_gradients(self, samples: Samples) -> Tensor:
        """Return ∂ cross entropy / ∂ (weight, bias) of the head for each sample of one task: (n, C (D + 1))."""
        task = int(samples.tasks[0])
        parts = samples.pixels.split(PASS_SIZE)
        features = torch.cat([self.network.backbone(self.normalization(part)) for part in parts])
        rows = self.network.heads.rows([task])
        error = apply_heads(features, rows).softmax(dim=1) - F.one_hot(samples.labels, len(rows))  # (n, C)
        with_bias = F.pad(features, (0, 1), value=1.0)  # (n, D + 1)
        return (error[:, :, None] * with_bias[:, None, :]).flatten(1)


def select_coreset(
    gradients: NDArray[np.float64], weights: NDArray[np.float64], count: int, ridge: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Select rows whose weighted sum approximates Σ_i weights_i gradients_i, greedily.

    Each iteration adds the row with the largest product with the residual and then computes all weights again, by
    non-negative least squares with a ridge.

    Args:
        gradients: (n, G).
        weights: (n,).
        count: The number of rows to select, less than n.
        ridge: The penalty λ on squared weights, relative to the mean squared norm of a row.

    Returns:
        The indices and the weights of the selected rows. Rows of weight 0 are omitted.
    """
    from scipy.optimize import nnls  # imported here because it takes half a second and only this method needs it

    target = weights @ gradients
    penalty = np.sqrt(ridge * np.square(gradients).sum(axis=1).mean())
    selected: list[int] = []
    new_weights = np.zeros(0)
    for _ in range(count):
        gain = gradients @ (target - new_weights @ gradients[selected])
        gain[selected] = -np.inf
        selected.append(int(gain.argmax()))
        design = np.vstack([gradients[selected].T, penalty * np.eye(len(selected))])
        new_weights, _ = nnls(design, np.concatenate([target, np.zeros(len(selected))]))
    if not new_weights.any():  # all gradients are 0: give all selected samples the same weight
        new_weights = np.full(count, weights.sum() / count)
    return np.array(selected)[new_weights > 0], new_weights[new_weights > 0]
