"""A model file on a device, as an embedder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from hetero.bundle import Artifact, Bundle
from hetero.devices._session import OnEvent, run
from hetero.devices._types import Device, Plan, RunResult
from hetero.errors import ConfigError
from hetero.space import Embeddings


class DeviceEmbedder:
    """A bundle's model file where it will be used, as a `hetero.embedder.Embedder`.

    Args:
        device: Where it runs.
        bundle: Where the file is.
        item: Which of its files.
        folder: For everything raw: see `hetero.devices.run`.
        plan: How long to measure latency beside the embedding.
        resume: Take over what an earlier run left in `folder`.
        on_event: Called with each event of the worker as it comes.
    """

    def __init__(
        self,
        device: Device,
        bundle: Bundle,
        item: Artifact,
        *,
        folder: Path,
        plan: Plan,
        resume: bool = False,
        on_event: OnEvent | None = None,
    ) -> None:
        self._device, self._bundle, self._item = device, bundle, item
        self._folder, self._plan, self._resume = folder, plan, resume
        self._on_event = on_event
        self._result: RunResult | None = None
        self.space = bundle.space
        self.name = f"{item.kind} {item.precision} on {device.name}"

    @property
    def result(self) -> RunResult:
        """Everything raw of the last `embed`: vectors as they came, every latency.

        Raises:
            ConfigError: Nothing was embedded yet.
        """
        if self._result is None:
            raise ConfigError(f"{self.name}: nothing was embedded yet; call embed first")
        return self._result

    def embed(self, ids: Sequence[str], pixels: UInt8[np.ndarray, "n s s 3"]) -> Embeddings:
        """See `hetero.embedder.Embedder.embed`.

        Raises:
            DeviceError: The device or the way to it failed.
        """
        self._result = run(
            self._device,
            self._bundle.path(self._item),
            self._item.kind,
            self._bundle.inputs(self._item, pixels),
            folder=self._folder,
            plan=self._plan,
            resume=self._resume,
            on_event=self._on_event,
        )
        return Embeddings.normalised(self.space, ids, self._result.outputs, self.name)
