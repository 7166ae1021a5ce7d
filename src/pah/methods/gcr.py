"""Gradient Coreset Replay: store the weighted samples whose gradient stands for that of all.

n: samples of a class, K: how many of them are kept, D: features, C: classes of the task.
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
from pah.methods.replay import DERpp, DERppOptions, samples_of
from pah.models.modes import evaluating
from pah.models.network import apply_rows


@dataclass(frozen=True)
class GCROptions(DERppOptions):
    """Options of gradient coreset replay.

    Args:
        alpha: Weight of the squared change of stored answers.
        beta: Weight of the stored images' cross entropy.
        ridge: λ, what large weights of kept samples cost, relative to the mean squared gradient of a sample.
    """

    alpha: float = 1.0
    beta: float = 1.0
    ridge: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.ridge >= 0, "method.ridge", "at least 0", self.ridge)


class GCR(DERpp):
    """Gradient Coreset Replay (Tiwari et al., CVPR 2022) with the losses of DER++, each sample by its weight.

    When a task ends, the buffer is chosen anew, class by class, from what is stored and the task's own images: K
    samples and weights w ≥ 0 that minimise ‖Σ_all v_i g_i - Σ_kept w_i g_i‖² + λ ‖w‖², by orthogonal matching
    pursuit. g_i is the gradient of sample i's cross entropy for its own head, v_i what it stood for until now.
    """

    options: GCROptions

    def store(self, batch: Batch, logits: Tensor) -> None:
        """Nothing: what is kept is chosen when the task ends."""

    @torch.no_grad()
    def end_task(self, task: Task) -> None:
        """Choose the buffer, with today's answers for the task's own images."""
        self.normalization = task.normalization
        new = samples_of(task).to(self.device)
        with evaluating(self.network):
            logits = [self.network(self.normalization(part), [task.index]) for part in new.pixels.split(500)]
            self.share_out(dataclasses.replace(new, logits=torch.cat(logits)), self.choose)

    def choose(self, samples: Samples, count: int) -> Samples:
        """The coreset of a class's samples, at most `count`."""
        if len(samples) <= count:
            return samples
        gradients = self.head_gradients(samples).cpu().double().numpy()
        kept, weights = coreset(gradients, samples.weights.cpu().double().numpy(), count, self.options.ridge)
        new = torch.from_numpy(weights).float().to(self.device)
        return dataclasses.replace(samples[torch.from_numpy(kept)], weights=new)

    def head_gradients(self, samples: Samples) -> Tensor:
        """∂ cross entropy / ∂ (weight, bias) of their task's head, a row a sample: (n, C (D + 1))."""
        task = int(samples.tasks[0])
        features = torch.cat([self.network.backbone(self.normalization(part)) for part in samples.pixels.split(500)])
        rows = self.network.heads.rows([task])
        error = apply_rows(features, rows).softmax(dim=1) - F.one_hot(samples.labels, len(rows))  # (n, C)
        with_bias = F.pad(features, (0, 1), value=1.0)  # (n, D + 1)
        return (error[:, :, None] * with_bias[:, None, :]).flatten(1)


def coreset(
    gradients: NDArray[np.float64], weights: NDArray[np.float64], count: int, ridge: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Rows of `gradients` (n, G) whose weighted sum stands for Σ_i weights_i gradients_i, at most `count` < n of them.

    Greedily: the row that has most in common with what is still unexplained, then all weights anew (non-negative
    least squares with a ridge). Returns the rows' indices and weights; rows that come out with weight 0 are left out.
    """
    from scipy.optimize import nnls  # half a second to import, for a method among many

    target = weights @ gradients
    penalty = np.sqrt(ridge * np.square(gradients).sum(axis=1).mean())
    kept: list[int] = []
    found = np.zeros(0)
    for _ in range(count):
        gain = gradients @ (target - found @ gradients[kept])
        gain[kept] = -np.inf
        kept.append(int(gain.argmax()))
        design = np.vstack([gradients[kept].T, penalty * np.eye(len(kept))])
        found, _ = nnls(design, np.concatenate([target, np.zeros(len(kept))]))
    if not found.any():  # no gradient left to stand for: the samples stand for their number
        found = np.full(count, weights.sum() / count)
    return np.array(kept)[found > 0], found[found > 0]
