"""Stage: a file on a device that is asked only until the verdict is certain.

Classes are taken in an order drawn by lot, a few queries of each, a chunk of classes at a time;
each chunk is a device run of its own. After each chunk its vectors and the evidence so far are on
disk: a run that was cut is continued with the same draw, and finished chunks are not asked again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from hetero._files import canonical_json, make_folder, write_json
from hetero.check import Place, Reference, losses
from hetero.errors import BundleError, DataError
from hetero.report import Limit, Measurement
from hetero.sequential import CLASSES_AT_ONCE, State, confidence_sequence, queries_of_each
from hetero.space import Embeddings
from hetero.verdict import Evidence

#: Vectors of these pictures, by the file on the device; the flag asks for its latency too.
Ask = Callable[[Sequence[str], bool], Embeddings]

#: What `hetero.check.losses` gives.
JUDGED = ("recall_at_1_lost", "query_negative_flip_rate")


@dataclass(frozen=True, eq=False)
class Asked:
    """What a device was asked, and what follows.

    Attributes:
        vectors: Of everything that was embedded.
        whole: Whether that is every picture of the task.
        evidence: By measurement; empty where nothing was stopped and nothing spent.
        queries: Queries embedded on the device.
    """

    vectors: Embeddings
    whole: bool
    evidence: Mapping[str, Evidence]
    queries: int


def judged_limits(limits: Sequence[Limit], place: Place) -> tuple[Limit, ...]:
    """The limits on this file that can be judged while queries come in.

    None, and the file is asked everything, where one of them wants a number of observations.
    """
    rows = [place.measured(name, 0.0) for name in JUDGED]
    laid = [x for x in limits if any(x.covers(row) for row in rows)]
    if any(x.min_n for x in laid):
        return ()
    return tuple(x for x in laid if x.by == "noninferiority")


@dataclass(frozen=True, eq=False)
class _Draw:
    """The order of classes and of the queries of each, by lot, the same at every start."""

    classes: tuple[str, ...]
    queries: Mapping[str, tuple[str, ...]]

    @classmethod
    def make(cls, reference: Reference, seed: int = 0) -> _Draw:
        rng = np.random.default_rng(seed)
        ranks, names = reference.ranks, reference.task.query_ids
        of: dict[str, list[str]] = {}
        for row, label in zip(ranks.queries, ranks.labels, strict=True):
            of.setdefault(label, []).append(names[row])
        order = rng.permutation(sorted(of))
        mixed = {
            str(c): tuple(str(x) for x in rng.permutation(np.asarray(sorted(of[c]), object)))
            for c in order
        }
        return cls(tuple(mixed), mixed)

    @property
    def largest(self) -> int:
        return max(len(x) for x in self.queries.values())

    @property
    def digest(self) -> str:
        """Of the whole draw: another test set, or another order, is other evidence."""
        return hashlib.sha256(canonical_json(list(self.queries.items())).encode()).hexdigest()

    def chunks(self) -> Iterator[tuple[str, ...]]:
        for begin in range(0, len(self.classes), CLASSES_AT_ONCE):
            yield self.classes[begin : begin + CLASSES_AT_ONCE]


@dataclass(frozen=True, eq=False)
class _Progress:
    """Evidence so far: for each limit a game, for each measurement the rows it was played with."""

    games: tuple[State, ...]
    rows: Mapping[str, tuple[tuple[float, int, int], ...]]

    def after(
        self, limits: Sequence[Limit], seen: Mapping[str, Mapping[str, list[float]]], draw: _Draw
    ) -> _Progress:
        games = list(self.games)
        rows = {name: list(x) for name, x in self.rows.items()}
        for name, classes in seen.items():
            for label in [c for c in draw.classes if c in classes]:
                outcomes, size = classes[label], len(draw.queries[label])
                rows[name].append((float(sum(outcomes)), len(outcomes), size))
                for at, limit in enumerate(limits):
                    if limit.measurement == name:
                        games[at] = games[at].observe(label, outcomes, size)
        return _Progress(tuple(games), {k: tuple(v) for k, v in rows.items()})

    def certain(self, limits: Sequence[Limit]) -> bool:
        """Whether every limit is decided by all that was seen."""
        outcomes = (g.outcome(x.alpha, x.beta) for g, x in zip(self.games, limits, strict=True))
        return all(x != "inconclusive" for x in outcomes)

    def to_json(self) -> dict[str, Any]:
        return {"games": [g.to_json() for g in self.games], "rows": self.rows}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> _Progress:
        rows = {
            name: tuple((float(s), int(n), int(k)) for s, n, k in x)
            for name, x in value["rows"].items()
        }
        return cls(tuple(State.from_json(g) for g in value["games"]), rows)


def until_certain(
    reference: Reference,
    limits: Sequence[Limit],
    ask: Ask,
    folder: Path,
    identity: Mapping[str, str],
    *,
    resume: bool,
) -> Asked:
    """What a file gives for as many queries as the verdict needs, at most all.

    Args:
        reference: What PyTorch gave.
        limits: From `judged_limits`; all have to be decided.
        ask: Embeds on the device.
        folder: For vectors and evidence of finished chunks.
        identity: What the evidence is about; other evidence in `folder` is not continued.
        resume: Go on where an equal run in `folder` was left.

    Raises:
        DeviceError: The device failed; finished chunks are in `folder`.
    """
    draw = _Draw.make(reference)
    about = {
        **identity,
        "limits": [[x.measurement, x.at_most, x.alpha, x.beta] for x in limits],
        "draw": draw.digest,
    }
    state = make_folder(folder) / "evidence.json"
    progress = _Progress(
        tuple(State(float(x.at_most or 0.0), draw.largest) for x in limits),
        {name: () for name in JUDGED},
    )
    done: list[Embeddings] = []
    if resume and state.exists():
        progress, done = _load(state, about, progress)
        if done:  # a finished run is not repeated, but its latencies are read again
            done[0] = ask(done[0].ids, True)
    changed = any(s != 0 for rows in progress.rows.values() for s, _, _ in rows)
    for number, labels in enumerate(draw.chunks()):
        if number < len(done):
            continue
        if done and progress.certain(limits):
            break
        ids = [i for c in labels for i in draw.queries[c][: queries_of_each(changed)]]
        vectors = ask(ids, not done)
        seen = _outcomes(reference, vectors)
        changed = changed or any(x != 0 for c in seen.values() for v in c.values() for x in v)
        progress = progress.after(limits, seen, draw)
        vectors.save(folder / f"chunk-{number:04}.safetensors")
        done.append(vectors)
        write_json(state, {"about": about, "chunks": number + 1, **progress.to_json()})
    have = _together(done)
    if progress.certain(limits):
        evidence = {
            k: Evidence("sequence", rows, draw.largest) for k, rows in progress.rows.items()
        }
        return Asked(have, False, evidence, len(have))
    known = set(have.ids)
    rest = ask([i for i in reference.task.ids if i not in known], False)
    everything = _together([have, rest]).take(reference.task.ids)
    return Asked(everything, True, {}, len(reference.task.query_ids))


def _outcomes(reference: Reference, vectors: Embeddings) -> dict[str, dict[str, list[float]]]:
    """By measurement and class, the paired losses of these queries."""
    held = reference.only(vectors.ids)
    ranks = held.task.rank(vectors, held.gallery)
    out: dict[str, dict[str, list[float]]] = {}
    values: Float64[np.ndarray, " q"]
    for name, values in losses(held.ranks, ranks).items():
        for label, value in zip(ranks.labels, values.tolist(), strict=True):
            out.setdefault(name, {}).setdefault(label, []).append(value)
    return out


def _together(parts: Sequence[Embeddings]) -> Embeddings:
    ids = tuple(i for x in parts for i in x.ids)
    return Embeddings(
        parts[0].space, ids, np.concatenate([x.vectors for x in parts]), parts[0].made_by
    )


def _load(
    state: Path, about: Mapping[str, Any], fresh: _Progress
) -> tuple[_Progress, list[Embeddings]]:
    """The evidence on disk with the vectors behind it, or a fresh start if it is of something else.

    Raises:
        BundleError: It is torn.
    """
    try:
        raw = json.loads(state.read_bytes())
        if raw["about"] != json.loads(json.dumps(about)):
            return fresh, []
        chunks = [
            Embeddings.load(state.with_name(f"chunk-{n:04}.safetensors"))
            for n in range(int(raw["chunks"]))
        ]
        return _Progress.from_json(raw), chunks
    except (OSError, ValueError, LookupError, TypeError, AttributeError, DataError) as error:
        raise BundleError(
            f"{state}: the evidence of an earlier run cannot be read ({error!r}); measure anew, "
            "without --resume"
        ) from error


def with_evidence(
    measured: Sequence[Measurement], asked: Asked | None, place: Place, total: int
) -> list[Measurement]:
    """The measurements of a file, with intervals that hold although it was stopped.

    Args:
        measured: From `hetero.check.file`.
        asked: What the device was asked; None where nothing was to be stopped.
        place: Which file.
        total: Queries there are.
    """
    if asked is None:
        return list(measured)
    out = []
    for m in measured:
        if m.name in asked.evidence:
            evidence = asked.evidence[m.name]
            ci = confidence_sequence(evidence, 0.025, 0.025)
            m = replace(m, value=evidence.estimate, evidence=evidence, ci=ci)
        elif m.name in JUDGED and m.evidence is not None:
            # A sequence came before and has had its part of alpha.
            m = replace(m, evidence=replace(m.evidence, design="after_sequence"))
        out.append(m)
    saved = total - asked.queries
    return [
        *out,
        place.measured("device_inferences", asked.queries, "count", n=total),
        place.measured("device_inferences_saved", saved, "count", n=total),
    ]
