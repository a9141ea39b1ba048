"""int8 that protects retrieval: as few layers as possible stay float, so that search loses little.

A layer's sensitivity is what search loses, and how far vectors turn, when that layer alone is int8.
Layers are given back to float, the most sensitive first, until what search loses by the whole file
is within the limits. Everything is measured with the written file on its own runtime, on validation
pictures in the gallery's index. By chance fewer of those may flip than of others, so the limit of
flips has to be kept with 95 % confidence.

Imports PyTorch through `hetero.export._quantize`, so it is imported inside `convert` only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float32
from torch import nn

from hetero._files import write_json
from hetero.bundle import Bundle
from hetero.compare import flips
from hetero.errors import ExportError
from hetero.export._job import ConvertJob, Facts, Runner
from hetero.retrieval import Ranks, Truth, rank
from hetero.space import Embeddings

T = TypeVar("T")

#: That the limit of flips is kept.
CONFIDENCE = 0.95

#: Share of the layers that may stay float before int8 is given up.
MOST = 0.5


@dataclass(frozen=True)
class Loss:
    """What search loses by a file, against the same net in PyTorch.

    Attributes:
        recall: Recall@1 lost, in -1..1.
        flips: Share of queries that were right and are wrong, in 0..1.
        turned: 1 minus the mean cosine to PyTorch's vectors.
    """

    recall: float
    flips: float
    turned: float


class Judge:
    """Measures files on a job's judging pictures.

    Args:
        job: With a `judge` file; see `hetero.export.judge_file`.
        net: What is converted, in PyTorch.
    """

    def __init__(self, job: ConvertJob, net: nn.Module) -> None:
        assert job.judge is not None, "a job that is judged has pictures to judge by"
        bundle = Bundle.load(job.bundle, verify=False)
        with np.load(job.judge, allow_pickle=False) as file:
            kept = {k: file[k] for k in file.files}
        self._space, self._limits = bundle.space, (job.most_lost, job.most_flips)
        self._inputs = kept["pixels"] if job.bake else bundle.preprocess.tensor(kept["pixels"])
        names = [tuple(map(str, kept[k])) for k in ("labels", "groups")]
        theirs = [tuple(map(str, kept[k])) for k in ("gallery_labels", "gallery_groups")]
        self._truth = Truth(names[0], names[1], theirs[0], theirs[1])
        ids = tuple(f"g{i}" for i in range(len(kept["gallery"])))
        self._gallery = Embeddings.normalised(self._space, ids, kept["gallery"], "gallery model")
        with torch.no_grad():
            parts = [
                net(torch.from_numpy(self._inputs[i : i + 64]))
                for i in range(0, len(self._inputs), 64)
            ]
        self._reference = self._embeddings(torch.cat(parts).float().numpy())
        self._ranks = self._searched(self._reference)

    def loss(self, runner: Runner) -> Loss | None:
        """What search loses; None if the file's vectors are not finite."""
        rows = runner(self._inputs)
        if not np.isfinite(rows).all() or not np.linalg.norm(rows, axis=1).min() > 0:
            return None
        found = self._embeddings(rows)
        ranks = self._searched(found)
        both = flips(self._ranks, ranks)
        cosine = np.einsum("nd,nd->n", found.vectors, self._reference.vectors)
        negative, positive = float(both.negative.mean()), float(both.positive.mean())
        return Loss(negative - positive, negative, float(1 - cosine.mean()))

    def within(self, loss: Loss | None) -> bool:
        """Whether that is within the job's limits."""
        lost, flipped = self._limits
        n = len(self._reference)
        flips_allowed = allowed(n, flipped) / n
        return loss is not None and loss.recall <= lost and loss.flips <= flips_allowed

    def _embeddings(self, rows: Float32[np.ndarray, "n d"]) -> Embeddings:
        ids = tuple(f"q{i}" for i in range(len(rows)))
        return Embeddings.normalised(self._space, ids, rows, "query model")

    def _searched(self, queries: Embeddings) -> Ranks:
        return rank(queries, self._gallery, self._truth)


def allowed(n: int, limit: float) -> int:
    """So many of n queries may flip that their true share is at most `limit`.

    A file at the limit shows so few or fewer in one of twenty samples. Where n is too small for
    that even without a flip, the limit's share of n.
    """
    from scipy.stats import binom

    most = math.floor(limit * n + 1e-9)
    sure = int(binom.ppf(1 - CONFIDENCE, n, limit)) - 1
    return most if sure < 0 or limit >= 1 else min(most, sure)


def fewest_in_float(
    make: Callable[[tuple[int, ...]], T],
    names: tuple[str, ...],
    load: Callable[[T], Runner],
    judge: Judge,
    table: Path,
) -> tuple[T, Facts]:
    """The model with the fewest layers in float that keeps to the limits, and how it was found.

    Args:
        make: A model where these layers, by position in `names`, stay float.
        names: Of the layers.
        load: Opens a model.
        judge: Measures.
        table: Gets the sensitivity of each layer as JSON, if layers had to be chosen.

    Raises:
        ExportError: Not even half of the layers in float suffice.
    """

    def tried(kept: tuple[int, ...]) -> tuple[T, Loss | None]:
        model = make(kept)
        with load(model) as runner:
            return model, judge.loss(runner)

    model, whole = tried(())
    alone: list[Loss | None] = []
    order: list[int] = []
    kept: tuple[int, ...] = ()
    loss = whole
    while not judge.within(loss):
        if not order:
            every = range(len(names))
            alone = [tried(tuple(j for j in every if j != i))[1] for i in every]
            # One layer flips few queries, and mostly by chance; how far it turns vectors is no
            # chance. What is kept to is the flips and the recall of the whole file.
            order = sorted(every, key=lambda i: _turned(alone[i]), reverse=True)
        kept = tuple(sorted(order[: len(kept) + 1]))
        if len(kept) > MOST * len(names):
            raise ExportError(
                f"int8 loses too much: {_said(loss)} with {len(kept) - 1} of {len(names)} layers "
                "in float; train with --qat, allow more, or use fp16"
            )
        model, loss = tried(kept)
    assert loss is not None
    if alone:
        rows = [
            {"layer": short(name), "kept_float": i in kept, **(vars(a) if a else {"finite": False})}
            for i, (name, a) in enumerate(zip(names, alone, strict=True))
        ]
        write_json(table, {"whole": vars(whole) if whole else None, "alone": rows})
    facts: Facts = {
        "layers": len(names),
        "layers_in_float": len(kept),
        "float_layers": ", ".join(short(names[i]) for i in kept),
        "judged_recall_at_1_lost": loss.recall,
        "judged_negative_flips": loss.flips,
    }
    if whole is not None:
        facts |= {"all_int8_recall_at_1_lost": whole.recall, "all_int8_negative_flips": whole.flips}
    return model, facts


def short(name: str) -> str:
    """A layer's name without what all share: ``a.b.Net/c.d.Conv_1;;…`` is ``Net/Conv_1``."""
    parts = [p.rpartition(".")[2] for p in name.split(";")[0].split("/")]
    return "/".join(parts[-3:])


def _turned(loss: Loss | None) -> float:
    return float("inf") if loss is None else loss.turned


def _said(loss: Loss | None) -> str:
    if loss is None:
        return "its vectors are not finite"
    return f"{100 * loss.recall:.2f} points of Recall@1, {100 * loss.flips:.2f} % negative flips"
