"""Embedder: anything that turns pictures into embeddings, wherever it runs.

PyTorch here is one (`hetero.models.TorchEmbedder`), an exported file opened on this machine is
another (`hetero.export.FileEmbedder`), a file on a device a third
(`hetero.devices.DeviceEmbedder`).
What is measured never asks which.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from hetero.space import Embeddings, Space


@runtime_checkable
class Embedder(Protocol):
    """Pictures in, unit rows in a space out."""

    @property
    def name(self) -> str:
        """Who embeds, for messages and reports: "int8 tflite on local"."""
        ...

    @property
    def space(self) -> Space:
        """Where its vectors live."""
        ...

    def embed(self, ids: Sequence[str], pixels: UInt8[np.ndarray, "n s s 3"]) -> Embeddings:
        """Embeddings of pictures at the model's input size, one per id.

        Raises:
            DataError: A vector is zero or not finite.
        """
        ...
