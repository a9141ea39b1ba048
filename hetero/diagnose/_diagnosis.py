"""What a diagnosis is: a verdict, the faults found, and how much each stage lost."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal["healthy", "fault", "inconclusive"]

#: What the command line exits with.
EXIT_CODES: dict[str, int] = {"healthy": 0, "fault": 1, "inconclusive": 3}


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Attributes:
        stage: One of `hetero.diagnose.STAGES`.
        cause: What is wrong, for people.
        evidence: What shows it.
        fix: What to do.
        exact: Whether the cause reproduces what the device gave; else it comes near, or the
            pictures that moved leave no other stage.
        cosine_lost: Mean 1 - cosine that it accounts for.
    """

    stage: str
    cause: str
    evidence: tuple[str, ...]
    fix: str
    exact: bool
    cosine_lost: float


@dataclass(frozen=True)
class Loss:
    """What happens between two points that are known.

    Attributes:
        stage: The stage, or "first..last" where nothing in between is known.
        cosine_lost: Mean 1 - cosine to PyTorch added there; may be negative.
        recall_lost: Heterogeneous recall@1 lost there; may be negative.
        how: How it was measured.
    """

    stage: str
    cosine_lost: float
    recall_lost: float
    how: str


@dataclass(frozen=True)
class Suspect:
    """A hypothesis and the part of the departure it explains."""

    stage: str
    what: str
    explained: float


@dataclass(frozen=True)
class Layer:
    """The first layer of a file whose output departs from PyTorch's.

    Attributes:
        tensor: Its output's name in the file.
        op: Its operator in the file.
        module: Path of the PyTorch module that does the same; "" for the net itself.
        stage: "normalise", "pooling" or "l2" where the layer is that; "" for the others.
        torch_op: The PyTorch operation.
        error: Relative difference of its output, 0 is none.
        error_before: The largest such difference among what it is computed from.
        match: How the module was found: "values", "order and shape", "order".
        confidence: 0..1: correlation of the outputs, or less where only order says so.
        compared: Tensors of the file that were compared.
        matched: Those with an equal in PyTorch.
    """

    tensor: str
    op: str
    module: str
    stage: str
    torch_op: str
    error: float
    error_before: float
    match: str
    confidence: float
    compared: int
    matched: int


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    Attributes:
        verdict: "healthy", "fault" or "inconclusive".
        faults: Those found, the one that costs most first.
        losses: What each stage lost; they add up to `cosine_lost` and `recall_lost`.
        cosine_lost: Mean 1 - cosine of the device's vectors to PyTorch's.
        recall_lost: Recall@1 of PyTorch's vectors less that of the device's.
        recall: Recall@1 of PyTorch's vectors.
        suspects: The hypotheses that explain most, whatever the verdict.
        notes: What else was seen.
        worst: Name of the picture that moved most.
        smallest: Name of the smallest picture file that moved; "" if none did.
        layer: Where inside the model, if that is where the fault is and it was looked for.
    """

    verdict: Verdict
    faults: tuple[Fault, ...]
    losses: tuple[Loss, ...]
    cosine_lost: float
    recall_lost: float
    recall: float
    suspects: tuple[Suspect, ...] = ()
    notes: tuple[str, ...] = ()
    worst: str = ""
    smallest: str = ""
    layer: Layer | None = None

    @property
    def stage(self) -> str:
        """The stage that costs most, or "" where none is named."""
        return self.faults[0].stage if self.faults else ""

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"schema": "hetero.diagnosis/1", "stage": self.stage, **asdict(self)}
