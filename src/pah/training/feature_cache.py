"""Features of a frozen backbone on disk, so that the runs of a study and a resumed run compute them once.

N: images, V: views, D: features.
"""

import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pah.data.decode_cache import cache_folder
from pah.data.task import Normalization
from pah.models.backbone import Backbone

FOLDER = "features"  # in the folder of decoded data sets: `pah data --clear_cache` deletes it with them
VERSION = 1  # of how features are computed; with another version, older files are no longer used
ROWS = 1024  # images that are copied at a time to compute a key


class FeatureCache:
    """Files of features, named by all that they depend on: the backbone, the views, the machine and the images.

    Args:
        backbone: The frozen backbone.
        normalization: How images are normalised.
        views: Text that is different for different views.
    """

    def __init__(self, backbone: Backbone, normalization: Normalization, views: str) -> None:
        self.folder = cache_folder() / FOLDER
        device = next(backbone.parameters()).device.type
        # rounding may differ with the number of threads and the instructions of the processor
        machine = (torch.__version__, device, torch.get_num_threads(), torch.backends.cpu.get_cpu_capability())
        scaling = (backbone.input_size, backbone.interpolation)
        digest = hashlib.sha256(repr((VERSION, machine, scaling, normalization, views)).encode())
        for name, tensor in backbone.state_dict().items():
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.cpu().contiguous().numpy().data)
        self.digest = digest

    def key(self, pixels: Tensor, rows: Tensor) -> str:
        """Return the name of the file for the images at `rows`; it depends on their pixels and their order."""
        digest = self.digest.copy()
        digest.update(f"{tuple(pixels.shape[1:])} {pixels.dtype} {len(rows)}".encode())
        for selected in rows.split(ROWS):
            digest.update(pixels[selected].cpu().contiguous().numpy().data)
        return digest.hexdigest()[:32]

    def load(self, key: str, shape: tuple[int, ...]) -> Tensor | None:
        """Return the kept features (N, V, D); None if there are none, or if the file is damaged."""
        try:
            features: NDArray[np.float32] = np.load(self.folder / f"{key}.npy", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        return torch.from_numpy(features) if features.shape == shape and features.dtype == np.float32 else None

    def save(self, key: str, features: NDArray[np.float32]) -> None:
        """Keep features (N, V, D). If the disk has no room for them, they are not kept: a run does not need it."""
        with suppress(OSError):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            number, name = tempfile.mkstemp(dir=self.folder)  # only the user may read it
            try:
                with os.fdopen(number, "wb") as file:
                    np.save(file, features, allow_pickle=False)
                os.replace(name, self.folder / f"{key}.npy")
            finally:
                Path(name).unlink(missing_ok=True)
