"""What a report says of a file on a device: by what it ran, why it did not, whom it agrees with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from hetero.errors import ConfigError, DataError

Execution = Literal["native", "emulated", "reference"]

#: Why something was not run: it cannot be here, its runtime refused the file, its device failed.
Obstacle = Literal["unavailable", "refused", "device"]


@dataclass(frozen=True)
class Cell:
    """By what a file was executed on a device.

    Attributes:
        device, format, precision: Which cell it is.
        execution: "native": the device's own processor. "emulated": right numbers, no times.
            "reference": an interpreter that stands in for the file's own runtime.
        runtime, version: Of the runtime; the version is exact.
        cpu: Of the processor, as it calls itself.
        features: Of the processor, as far as they decide on kernels.
        threads: Of the runtime, or 0 where that is not known.
        provider: What the runtime computes with.
    """

    device: str
    format: str
    precision: str
    execution: Execution
    runtime: str = ""
    version: str = ""
    cpu: str = ""
    features: tuple[str, ...] = ()
    threads: int = 0
    provider: str = ""

    def __post_init__(self) -> None:
        if self.execution not in ("native", "emulated", "reference"):
            raise DataError(
                f"{self.device}: execution is native, emulated or reference, got {self.execution!r}"
            )

    def to_json(self) -> dict[str, Any]:
        """As in `report.json`."""
        return {**asdict(self), "features": list(self.features)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Cell:
        """What `to_json` wrote."""
        return cls(**{**value, "features": tuple(value["features"])})


@dataclass(frozen=True)
class Pair:
    """How far two cells of one format and precision agree, or a cell and PyTorch.

    Attributes:
        format, precision: Of both.
        a, b: Their devices; a is empty for PyTorch, which comes first.
        cosine_worst: Smallest cosine between their vectors of a query, -1..1.
        worst_id: The query with it.
        top1_same: Share of queries for which both find the same picture first, 0..1.
        n: Queries that both embedded.
        apart: Whether two devices differ by more than rounding explains.
        cause: The likely reason if they do, or "".
    """

    format: str
    precision: str
    a: str
    b: str
    cosine_worst: float
    worst_id: str
    top1_same: float
    n: int
    apart: bool = False
    cause: str = ""

    def to_json(self) -> dict[str, Any]:
        """As in `report.json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Pair:
        """What `to_json` wrote."""
        return cls(**value)


@dataclass(frozen=True)
class NotRun:
    """Something a reader might think was executed, and why it was not.

    Attributes:
        format, precision, device: What it is about; empty for any.
        reason: Why, in a sentence.
        obstacle: "unavailable" where it could not have been run here. "refused" by the device's
            runtime, or left out by a "device" that failed or stayed away: then it was asked for,
            and the report cannot pass without it.
    """

    format: str
    precision: str
    device: str
    reason: str
    obstacle: Obstacle = "unavailable"

    def __post_init__(self) -> None:
        if self.obstacle not in ("unavailable", "refused", "device"):
            raise ConfigError(
                f"not run: the obstacle is unavailable, refused or device, got {self.obstacle!r}"
            )
