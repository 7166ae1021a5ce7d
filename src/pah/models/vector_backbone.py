"""The backbone of learners that take vectors: it passes them through.

B: number of vectors, D: numbers in a vector, which are its features.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pah.core.config import InputError, require
from pah.models.backbone import Backbone, BackboneOptions, Trained


class PassThrough(nn.Module):
    """Returns vectors (B, D, 1, 1) as features (B, D). Of larger prototypes it returns the mean over their pixels."""

    def __init__(self) -> None:
        super().__init__()
        # without numbers; it has the device of the network, whose heads come later
        self.place = nn.Parameter(torch.empty(0), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))


@dataclass(frozen=True)
class FeaturesOptions(BackboneOptions):
    """No network: the data are vectors, such as embeddings of text or audio, and these are the features.

    Args:
        weights: None: there are no weights.
        train: None is the only value, as there is nothing to train.
        views: 1, as vectors are not augmented.
        input_size: None: vectors are not scaled.
    """

    train: Trained = "none"
    views: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.weights is None, "backbone.weights", "none with features, which has no weights", self.weights)
        require(self.train == "none", "backbone.train", "none with features, which has no weights", self.train)
        require(self.views == 1, "backbone.views", "1 with features, as vectors are not augmented", self.views)
        size = self.input_size
        require(size is None, "backbone.input_size", "none with features, as vectors have no size", size)

    @property
    def takes_vectors(self) -> bool:
        """Whether the data are vectors and not images: yes."""
        return True

    def build(self, channels: int) -> Backbone:
        """Return the backbone for vectors of D = `channels` numbers."""
        backbone = Backbone(PassThrough(), channels)
        backbone.takes_vectors = True
        return backbone

    def build_for(self, channels: int, size: tuple[int, int]) -> Backbone:
        """Return the backbone for vectors; InputError for images of more than one pixel."""
        if size != (1, 1):
            raise InputError(f"backbone features: expected vectors, got images of {size[0]}x{size[1]}")
        return self.build(channels)
