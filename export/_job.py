"""What passes between `export`, the formats and the child process."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, UInt8

from hetero.errors import ConfigError

#: Pictures a call where a file takes any number; bounds memory.
_BATCH = 64

#: Where only weights are rounded, those of fewer elements stay float: they save little, lose most.
LEAST_WEIGHTS = 2048

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


@dataclass(frozen=True, eq=False)
class Judging:
    """Pictures by which int8 is judged, and what it may lose: see `hetero.export._mixed`.

    Attributes:
        pixels: Queries at input size, of classes that no model was trained on.
        labels, groups: Of the queries; see `hetero.retrieval.Truth`.
        gallery: The gallery model's vectors of what is searched.
        gallery_labels, gallery_groups: Of those.
        most_lost: Recall@1 that may be lost against PyTorch, in 0..1.
        most_flips: Share of queries that may turn from right to wrong, in 0..1.
    """

    pixels: UInt8[np.ndarray, "q s s 3"]
    labels: tuple[str, ...]
    groups: tuple[str, ...]
    gallery: Float32[np.ndarray, "g d"]
    gallery_labels: tuple[str, ...]
    gallery_groups: tuple[str, ...]
    most_lost: float = 0.005
    most_flips: float = 0.01

    def __post_init__(self) -> None:
        """Refuse what cannot be judged by."""
        if not (0 <= self.most_lost <= 1 and 0 <= self.most_flips <= 1):
            raise ConfigError(
                "int8 may lose a share of queries, 0 to 1; got "
                f"most_lost={self.most_lost}, most_flips={self.most_flips}"
            )

    def save(self, path: Path) -> None:
        """Write the arrays, for the child process."""
        texts = ("labels", "groups", "gallery_labels", "gallery_groups")
        np.savez(
            path,
            pixels=self.pixels,
            gallery=self.gallery,
            **{k: np.asarray(getattr(self, k), np.str_) for k in texts},  # type: ignore[arg-type]
        )


@dataclass(frozen=True)
class ConvertJob:
    """What a format's `convert` has to write; travels to the child process as JSON.

    Attributes:
        bundle: Root of the bundle whose weights are converted.
        output: The file (or folder) to write; its folder exists.
        format: The format's name.
        precision: One of those that the format can write.
        bake: True: uint8 NHWC in, preprocessing inside. False: float32 NCHW, normalised outside.
        batch: Fixed number of pictures a call, or 0 for any number.
        size_px: Side of the input.
        dim: Length of the embedding, or number of outputs.
        metadata: Texts that the file has to carry, all keys begin with "hetero.".
        calibration: A .npy file of uint8 NHWC training pictures; given for int8, else None.
        threads: For the converter and the runtimes it calls.
        judge: A .npz of `Judging`, if int8 shall keep to limits.
        most_lost, most_flips: Those limits.
        adaptation: A file of `hetero.lqf`: the bundle's linearised model with this change is what
            is converted, and its outputs are no unit rows; None for the bundle's own net.
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
    judge: Path | None = None
    most_lost: float = 1.0
    most_flips: float = 1.0
    adaptation: Path | None = None

    @property
    def output_name(self) -> str:
        """What the file's output is called: unit rows are an embedding, others are outputs."""
        return "embedding" if self.adaptation is None else "outputs"

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
        kept = ("bundle", "output", "calibration", "judge", "adaptation")
        return cls(**{**raw, **{k: raw[k] and Path(raw[k]) for k in kept}})


def in_batches(
    call: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]],
    inputs: np.ndarray[Any, Any],
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    what: str,
) -> Float32[np.ndarray, "n d"]:
    """The rows that `call` gives for all inputs, a batch of the right size at a time.

    The last batch of a file with a fixed batch is filled up with its last picture, and the
    surplus rows are dropped.

    Args:
        call: Runs one batch.
        inputs: Any number of pictures.
        shape: Of one batch; a first number of 0 means that any size will do.
        dtype: Of the inputs that the file takes.
        what: Names the file in messages.

    Raises:
        ConfigError: The inputs are not what the file takes, or there are none.
    """
    if inputs.dtype != dtype or inputs.shape[1:] != shape[1:] or not len(inputs):
        raise ConfigError(
            f"{what} takes {dtype} pictures of shape {('n', *shape[1:])}, "
            f"got {inputs.dtype} {inputs.shape}"
        )
    batch = shape[0] or _BATCH
    rows = []
    for begin in range(0, len(inputs), batch):
        part = inputs[begin : begin + batch]
        missing = batch - len(part) if shape[0] else 0
        full = np.concatenate([part, np.repeat(part[-1:], missing, axis=0)]) if missing else part
        rows.append(call(np.ascontiguousarray(full))[: len(part)])
    return np.concatenate(rows, dtype=np.float32)


def first_line(error: BaseException) -> str:
    """The first line of an error that says something, with its kind, without colours.

    Where a converter wraps an error in a notice about its own steps, the error inside is meant.
    """
    inner = error.__cause__ or error
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(inner))
    said = next((" ".join(x.split()) for x in text.splitlines() if x.strip()), "")
    return f"{type(inner).__name__}: {said[:300]}".removesuffix(": ")
