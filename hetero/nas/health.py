"""Whether a supernet's scores mean anything: inherited weights against weights of one's own.

Differs from the papers, which do not ask: on few pictures a single-path supernet's scores were a
tenth of what the same architectures reach on their own, and ranking such scores is ranking noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hetero.errors import ConfigError

#: Of what a probe reaches on its own, at least this share has to be there with inherited weights.
LEAST_SHARE = 0.5


@dataclass(frozen=True)
class Health:
    """A supernet's state of health.

    Attributes:
        inherited: R2 of each probe with weights taken from the supernet, 0..1.
        alone: R2 of the same probes trained on their own.
    """

    inherited: tuple[float, ...]
    alone: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse probes that do not pair up."""
        if not self.inherited or len(self.inherited) != len(self.alone):
            raise ConfigError(
                f"health: {len(self.inherited)} inherited scores and {len(self.alone)} of their own"
            )

    @property
    def shares(self) -> tuple[float, ...]:
        """What part of its own score each probe has with inherited weights."""
        return tuple(
            i / a if a > 0 else 0.0 for i, a in zip(self.inherited, self.alone, strict=True)
        )

    @property
    def healthy(self) -> bool:
        """Whether every probe has half of its own score."""
        return min(self.shares) >= LEAST_SHARE

    def __str__(self) -> str:
        shares = ", ".join(f"{s:.0%}" for s in self.shares)
        return f"inherited weights give {shares} of what probes reach on their own"


def judge_health(inherited: Sequence[float], alone: Sequence[float]) -> Health:
    """The health of a supernet by its probes.

    Args:
        inherited: R2 of each probe with the supernet's weights.
        alone: R2 of each probe trained on its own.

    Raises:
        ConfigError: No probes, or they do not pair up.
    """
    return Health(tuple(inherited), tuple(alone))
