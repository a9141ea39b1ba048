"""Measurements and limits: a number is not a result until it has a unit and a limit.

`hetero.report` puts them together and writes them; names from here can be imported from there.
"""

from __future__ import annotations

import fnmatch
import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from hetero.errors import ConfigError
from hetero.verdict import Decision, Evidence, decide

Outcome = Literal["pass", "fail", "inconclusive", "unjudged"]

_GRAVEST: tuple[Outcome, ...] = ("fail", "inconclusive", "pass", "unjudged")


def gravest(outcomes: Iterable[Outcome]) -> Outcome:
    """The outcome that a reader must not miss."""
    return min(outcomes, key=_GRAVEST.index, default="unjudged")


def finite(value: float) -> float | None:
    """The plain number, or None where JSON has none."""
    return float(value) if math.isfinite(value) else None


@dataclass(frozen=True)
class Limit:
    """A bound on a measurement, and on which of its rows it is laid.

    Attributes:
        measurement: Name of the measurement.
        at_least: Lower bound, in the measurement's unit, or None.
        at_most: Upper bound, or None; at least one of the two is given.
        device, format, precision: Shell patterns that choose rows; "*" takes any.
        by: "value" judges the number alone. "interval" asks that the whole confidence interval
            lies on one side: a limit inside the interval is inconclusive. "noninferiority" tests
            paired outcomes with declared error rates; at_most is then the margin: see
            `hetero.verdict`.
        alpha: For "noninferiority": at most this share of files that lose the margin or more pass.
        beta: For "noninferiority": at most this share of files that lose the margin or less fail.
        min_n: With fewer observations than this the outcome is inconclusive.
        why: One sentence for the report.
    """

    measurement: str
    at_least: float | None = None
    at_most: float | None = None
    device: str = "*"
    format: str = "*"
    precision: str = "*"
    by: Literal["value", "interval", "noninferiority"] = "value"
    alpha: float = 0.05
    beta: float = 0.05
    min_n: int = 0
    why: str = ""

    def __post_init__(self) -> None:
        if self.at_least is None and self.at_most is None:
            raise ConfigError(f"limit on {self.measurement!r}: give at_least, at_most or both")
        bounds = [b for b in (self.at_least, self.at_most) if b is not None]
        if any(
            isinstance(b, bool) or not isinstance(b, int | float) or not math.isfinite(b)
            for b in bounds
        ):
            raise ConfigError(
                f"limit on {self.measurement!r}: a bound is not a finite number ({bounds})"
            )
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise ConfigError(
                f"limit on {self.measurement!r}: at_least {self.at_least:g} is above at_most "
                f"{self.at_most:g}; nothing could pass"
            )
        words = (self.measurement, self.device, self.format, self.precision, self.why)
        if not all(isinstance(word, str) for word in words):
            raise ConfigError(
                f"limit on {self.measurement!r}: measurement, device, format, precision and why "
                "are text"
            )
        if isinstance(self.min_n, bool) or not isinstance(self.min_n, int) or self.min_n < 0:
            raise ConfigError(
                f"limit on {self.measurement!r}: min_n is a whole number, got {self.min_n!r}"
            )
        if self.by not in ("value", "interval", "noninferiority"):
            raise ConfigError(
                f"limit on {self.measurement!r}: by is 'value', 'interval' or 'noninferiority', "
                f"got {self.by!r}"
            )
        for name, rate in (("alpha", self.alpha), ("beta", self.beta)):
            if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < 0.5:
                raise ConfigError(
                    f"limit on {self.measurement!r}: {name} is an error rate between 0 and 0.5, "
                    f"got {rate!r}"
                )
        if self.by == "noninferiority" and (
            self.at_least is not None or self.at_most is None or not -1 < self.at_most < 1
        ):
            raise ConfigError(
                f"limit on {self.measurement!r}: by 'noninferiority' takes a margin at_most "
                "between -1 and 1, and no at_least"
            )

    def __str__(self) -> str:
        low, high = (f"{b:g}" if b is not None else "" for b in (self.at_least, self.at_most))
        return f"{low} to {high}" if low and high else (f"≥ {low}" if low else f"≤ {high}")

    def covers(self, m: Measurement) -> bool:
        """Whether the limit is laid on this measurement."""
        return self.measurement == m.name and all(
            fnmatch.fnmatchcase(value, pattern)
            for value, pattern in (
                (m.device, self.device),
                (m.format, self.format),
                (m.precision, self.precision),
            )
        )

    def decide(self, m: Measurement) -> Decision | None:
        """What the paired outcomes say about the margin; None unless judged by "noninferiority".

        Raises:
            ConfigError: The measurement was made without paired outcomes.
        """
        if self.by != "noninferiority" or not math.isfinite(m.value):
            return None
        if m.evidence is None or self.at_most is None:
            raise ConfigError(
                f"limit on {m.name!r} judges by noninferiority, but it was measured without paired "
                'outcomes; say by = "value", or measure again with this version'
            )
        return decide(m.evidence, float(self.at_most), self.alpha, self.beta)

    def laid_on(self, m: Measurement) -> Measurement:
        """The measurement, judged by this limit."""
        decision = self.decide(m)
        return replace(m, limit=self, decision=decision, outcome=self._outcome(m, decision))

    def judge(self, m: Measurement) -> Outcome:
        """The outcome for a measurement; a value that is not finite fails.

        Raises:
            ConfigError: The limit asks for an interval or a count that was not measured.
        """
        return self._outcome(m, self.decide(m))

    def _outcome(self, m: Measurement, decision: Decision | None) -> Outcome:
        if m.doubt.startswith("invalid"):
            return "inconclusive"
        if not math.isfinite(m.value):
            return "fail"
        if self.min_n and m.n is None:
            raise ConfigError(
                f"limit on {m.name!r} asks for {self.min_n} observations, but it was measured "
                "without a count; remove min_n"
            )
        if m.n is not None and m.n < self.min_n:
            return "inconclusive"
        if decision is not None:
            return decision.outcome
        low, high = (m.value, m.value)
        if self.by == "interval":
            if m.ci is None:
                raise ConfigError(
                    f"limit on {m.name!r} judges by interval, but it was measured without one; "
                    'say by = "value"'
                )
            low, high = m.ci
        least = -math.inf if self.at_least is None else self.at_least
        most = math.inf if self.at_most is None else self.at_most
        if least <= low and high <= most:
            return "pass"
        if high < least or low > most:
            return "fail"
        return "inconclusive" if self.by == "interval" else "fail"


@dataclass(frozen=True)
class Measurement:
    """One number with its unit, where it was measured, and what was made of it.

    Attributes:
        name: Snake case, the field's term: "heterogeneous_recall_at_1", "latency_p50".
        value: The number. Ratios are in 0..1.
        unit: "ms", "MiB", "s", "count"; empty for a ratio or a cosine.
        device, format, precision: Of the file it belongs to; empty for a model as a whole.
        limit: What it was held to, once judged.
        outcome: "unjudged" until there is a limit.
        ci: 95 % confidence interval, or None.
        n: Observations behind the number (queries, runs), or None.
        evidence: Paired outcomes by class, from which it can be judged again; None where there
            are none.
        decision: What the evidence says about the limit, once judged by "noninferiority".
        doubt: Why the number is not to be believed: "noisy: …", "throttled: …" or "invalid: …";
            empty for most. An invalid number is neither passed nor failed.
    """

    name: str
    value: float
    unit: str = ""
    device: str = ""
    format: str = ""
    precision: str = ""
    limit: Limit | None = None
    outcome: Outcome = "unjudged"
    ci: tuple[float, float] | None = None
    n: int | None = None
    evidence: Evidence | None = None
    decision: Decision | None = None
    doubt: str = ""

    def to_json(self) -> dict[str, Any]:
        """As in `report.json`; a value or an interval that is not finite becomes null."""
        ci = None
        if self.ci is not None and all(math.isfinite(end) for end in self.ci):
            ci = [float(end) for end in self.ci]
        limit: dict[str, Any] | None = None
        if self.limit is not None:
            limit = {
                "at_least": self.limit.at_least,
                "at_most": self.limit.at_most,
                "by": self.limit.by,
                "min_n": self.limit.min_n,
                "why": self.limit.why,
            }
            if self.limit.by == "noninferiority":
                limit |= {"alpha": self.limit.alpha, "beta": self.limit.beta}
        return {
            "name": self.name,
            "value": finite(self.value),
            "unit": self.unit,
            "device": self.device,
            "format": self.format,
            "precision": self.precision,
            "limit": limit,
            "outcome": self.outcome,
            "ci": ci,
            "n": None if self.n is None else int(self.n),
            "evidence": self.evidence and self.evidence.to_json(),
            "decision": self.decision and self.decision.to_json(),
            **({"doubt": self.doubt} if self.doubt else {}),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Measurement:
        """What `to_json` wrote; a null value comes back as NaN."""
        limit = value["limit"] and Limit(value["name"], **value["limit"])
        ci = value["ci"] and (float(value["ci"][0]), float(value["ci"][1]))
        number = math.nan if value["value"] is None else float(value["value"])
        evidence = value.get("evidence") and Evidence.from_json(value["evidence"])
        decision = value.get("decision") and Decision(outcome=value["outcome"], **value["decision"])
        parts = {"limit": limit, "ci": ci, "evidence": evidence, "decision": decision}
        return cls(**{**value, **parts, "value": number})


def load_limits(path: Path | None = None) -> tuple[Limit, ...]:
    """The limits of a TOML file of ``[[limit]]`` tables, or the built-in ones.

    Raises:
        ConfigError: The file is missing, is not TOML, or a table has a wrong key or value.
    """
    source = path or Path(__file__).with_name("limits.toml")
    try:
        raw = tomllib.loads(source.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{source}: limits cannot be read ({error})") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: not TOML: {error}") from error
    tables = raw.get("limit")
    if not isinstance(tables, list) or not tables:
        raise ConfigError(f"{source}: no [[limit]] table in it; nothing would be judged")
    limits = []
    for number, table in enumerate(tables, 1):
        try:
            limits.append(Limit(**table))
        except TypeError as error:
            raise ConfigError(f"{source}: limit {number}: {error}") from error
    return tuple(limits)
