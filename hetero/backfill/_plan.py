"""A plan file: the index in production, the generations of its rows, the apps that ask it."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hetero import _schemas
from hetero.errors import ConfigError
from hetero.versions import METRICS

#: A plan that takes longer than this is none.
LONGEST_WEEKS = 260


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Index(_Part):
    """The index in production.

    Attributes:
        images: Rows in it.
        price_per_1000: Of embedding a thousand images, in `currency`.
        currency: For people.
        images_per_s: How fast rows are re-embedded, all workers together; None to measure what this
            machine does.
        starts_week: When re-embedding begins, in weeks from now.
    """

    images: int = Field(ge=1, le=10**15)
    price_per_1000: float = Field(default=0.0, ge=0)
    currency: str = "USD"
    images_per_s: float | None = Field(default=None, gt=0)
    starts_week: float = Field(default=0.0, ge=0, le=LONGEST_WEEKS)


class Generation(_Part):
    """A gallery model with rows in the index, or, the last one, by which rows are re-embedded.

    Attributes:
        bundle: Folder of the gallery bundle.
        name: For people; "" for the folder's.
        share: Of the rows today, in 0..1.
    """

    bundle: str = Field(min_length=1)
    name: str = ""
    share: float = Field(default=0.0, ge=0, le=1)


class Cohort(_Part):
    """An installed version of the app.

    Attributes:
        bundle: Folder of its query bundle.
        name: For people; "" for the folder's.
        traffic: Its share of the queries today, in 0..1.
        declines: Share of its users that go over to the last cohort each week, in 0..1.
        floor: What it has to find at any time, in 0..1; None for no more than today less the
            margin.
    """

    bundle: str = Field(min_length=1)
    name: str = ""
    traffic: float = Field(ge=0, le=1)
    declines: float = Field(default=0.0, ge=0, le=1)
    floor: float | None = Field(default=None, ge=0, le=1)


class Plan(_Part):
    """A plan file.

    Attributes:
        metric: Of `hetero.versions.METRICS`.
        weeks: To look ahead; more if re-embedding takes longer.
        margin: What a cohort may lose against today, in 0..1.
        index: See `Index`.
        generation: Oldest first; the last one re-embeds the rows of the others.
        cohort: Oldest first; users go over to the last one.
    """

    metric: str = "recall_at_1"
    weeks: int = Field(default=12, ge=1, le=LONGEST_WEEKS)
    margin: float = Field(default=0.01, ge=0, le=1)
    index: Index
    generation: list[Generation] = Field(min_length=2)
    cohort: list[Cohort] = Field(min_length=1)

    @model_validator(mode="after")
    def _adds_up(self) -> Plan:
        if self.metric not in METRICS:
            raise ValueError(f"metric {self.metric!r}: there are {', '.join(METRICS)}")
        for what, values in (
            ("share of all generations", [g.share for g in self.generation]),
            ("traffic of all cohorts", [c.traffic for c in self.cohort]),
        ):
            if not math.isclose(sum(values), 1, abs_tol=1e-3):
                raise ValueError(f"{what}: adds up to {sum(values):g}, not to 1")
        for kind, names in (("generation", self.generations), ("cohort", self.cohorts)):
            if twice := next((n for n in names if names.count(n) > 1), None):
                raise ValueError(f"{kind} {twice!r} is there twice; give each a name")
        if self.generation[-1].share > 1 - 1e-9:
            raise ValueError(f"all rows are of {self.generations[-1]} already; nothing to plan")
        if self.cohort[-1].declines:
            raise ValueError(
                f"cohort {self.cohorts[-1]!r} is the last, to which users go over; it cannot "
                "decline"
            )
        return self

    @property
    def generations(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(g.name or Path(g.bundle).name for g in self.generation)

    @property
    def cohorts(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(c.name or Path(c.bundle).name for c in self.cohort)

    @property
    def rows(self) -> int:
        """How many rows are to be re-embedded."""
        return math.ceil((1 - self.generation[-1].share) * self.index.images)

    @property
    def cost(self) -> float:
        """What that costs, in `Index.currency`."""
        return self.rows / 1000 * self.index.price_per_1000

    def traffic(self, week: float) -> Float64[np.ndarray, " c"]:
        """Each cohort's share of the traffic, in so many weeks."""
        now = np.asarray([c.traffic for c in self.cohort], dtype=np.float64)
        kept = now * np.asarray([(1 - c.declines) ** week for c in self.cohort])
        kept[-1] += now.sum() - kept.sum()
        shares: Float64[np.ndarray, " c"] = kept / now.sum()
        return shares


def load(path: Path) -> Plan:
    """The plan of a TOML file; folders in it are relative to the file.

    Raises:
        ConfigError: The file is missing, is not TOML, or has a wrong key or value.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: plan cannot be read ({error})") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    try:
        plan = Plan.model_validate(_schemas.of_text(path, raw))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(x + 1 if isinstance(x, int) else x) for x in first["loc"])
        what = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{path}: {f'{where}: ' if where else ''}{what}") from error

    def beside(part: Any) -> Any:
        return part.model_copy(update={"bundle": str(path.parent / part.bundle)})

    parts = {key: [beside(p) for p in getattr(plan, key)] for key in ("generation", "cohort")}
    return plan.model_copy(update=parts)
