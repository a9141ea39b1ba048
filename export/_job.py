"""What passes between `export`, the formats and the child process."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

#: What was found out about a file; goes into the bundle's manifest.
Facts = dict[str, str | float | int]


@runtime_checkable
class Runner(Protocol):
    """A model file opened for running; a context manager, called with inputs.

    Attributes:
        runtime: What executes it, with its version: "onnxruntime 1.32.0".
    """

    runtime: str

    def __enter__(self) -> Runner:
        """Itself."""
        ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing; the file is closed."""
        ...

    def __call__(self, inputs: np.ndarray[Any, Any]) -> Float32[np.ndarray, "n d"]:
        """One row per input, as the runtime gave it, not normalised again.

        Args:
            inputs: uint8 (n, s, s, 3) or float32 (n, 3, s, s), as the file wants them; any n, also
                where the file has a fixed batch.
        """
        ...


@dataclass(frozen=True)
class ConvertJob:
    """What a format's `convert` has to write; travels to the child process as JSON.

    Attributes:
        bundle: Root of the bundle whose weights are converted.
        output: The file (or folder) to write; its folder exists.
        format: The format's name.
        precision: "fp32", "fp16" or "int8".
        bake: True: uint8 NHWC in, preprocessing inside. False: float32 NCHW, normalised outside.
        batch: Fixed number of pictures a call, or 0 for any number.
        size_px: Side of the input.
        dim: Length of the embedding.
        metadata: Texts that the file has to carry, all keys begin with "hetero.".
        calibration: A .npy file of uint8 NHWC training pictures; given for int8, else None.
        threads: For the converter and the runtimes it calls.
    """

    bundle: Path
    output: Path
    format: str
    precision: str
    bake: bool
    batch: int
    size_px: int
    dim: int
    metadata: Mapping[str, str]
    calibration: Path | None = None
    threads: int = 1

    @property
    def input(self) -> Literal["uint8_nhwc", "float32_nchw"]:
        """What the file takes, as manifests say it."""
        return "uint8_nhwc" if self.bake else "float32_nchw"

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """Shape of one call's input; 1 stands for a dynamic batch."""
        n, s = self.batch or 1, self.size_px
        return (n, s, s, 3) if self.bake else (n, 3, s, s)

    def to_json(self) -> str:
        """The job as JSON text."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> ConvertJob:
        """The job that `to_json` wrote."""
        raw = json.loads(text)
        calibration = raw["calibration"] and Path(raw["calibration"])
        paths = {"bundle": Path(raw["bundle"]), "output": Path(raw["output"])}
        return cls(**{**raw, **paths, "calibration": calibration})
