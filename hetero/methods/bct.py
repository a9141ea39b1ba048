"""Backward-compatible training, turned from time to size: own head and the gallery's frozen head.

Paper: Shen, Xiong, Xia and Soatto, "Towards Backward-Compatible Representation Learning", CVPR
    2020, arXiv:2003.11942, the influence loss; as used between sizes by Duggal et al.,
    "Compatibility-aware Heterogeneous Visual Search", CVPR 2021, arXiv:2105.06047.
Differs: the frozen classifier belongs to the gallery model, not to an older model, because here it
    is the query model that has to fit in. The own head is a cosine classifier; it starts from the
    gallery model's rows where there are rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from hetero.heads import CosineHead
from hetero.methods import Setup, Step


class _Heads(nn.Module):
    """The own classifier, which learns, and the gallery model's, which does not."""

    rows: Tensor
    right: Tensor

    def __init__(self, own: CosineHead | None, rows: Tensor, right: Tensor) -> None:
        super().__init__()
        self.own = own
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("right", right, persistent=False)


@dataclass(frozen=True)
class Method:
    """Cross-entropy under the query model's own classifier and under the gallery model's.

    Attributes:
        influence: Weight λ of the frozen classifier's term.
        own_weight: Weight of the own classifier's term; at 0 there is none.
        scale: Multiplies cosines in both.
        margin: Taken off the right class's cosine in both.
        synthesise: Give a class that the gallery model never saw a row in the frozen classifier:
            the mean of the gallery model's vectors of that class.
        normalised: Use the frozen rows at length 1 under `scale` and `margin`; if false, as the
            gallery model was trained with them, which means something only for a plain classifier.
    """

    influence: float = 1.0
    own_weight: float = 1.0
    scale: float = 16.0
    margin: float = 0.1
    synthesise: bool = True
    normalised: bool = True
    needs: ClassVar[frozenset[str]] = frozenset({"labels", "head"})

    @property
    def whole_batch(self) -> bool:
        """Whether pictures may lack a row: the mean is then over those that have one."""
        return not self.synthesise

    def own(self, setup: Setup) -> nn.Module:
        """The query model's own classifier, and the frozen one with its missing rows made."""
        assert setup.labels is not None
        assert setup.head is not None
        assert setup.head_labels is not None
        known = setup.head_labels >= 0
        rows, right = setup.head.float(), setup.head_labels.clone()
        own = None
        if self.own_weight:
            own = CosineHead(setup.dim, setup.classes, self.scale, self.margin)
            with torch.no_grad():
                own.weight[setup.labels[known]] = nn.functional.normalize(rows[right[known]], dim=1)
        if self.synthesise and not bool(known.all()):
            unknown = torch.unique(setup.labels[~known])
            made = [_mean_vector(setup, setup.labels == c) for c in unknown]
            # As long as the others are on average, so that a plain classifier treats them alike.
            made_rows = torch.stack(made) * rows.norm(dim=1).mean()
            place = torch.full((setup.classes,), -1)
            place[unknown] = len(rows) + torch.arange(len(unknown))
            right = torch.where(known, right, place[setup.labels])
            rows = torch.cat([rows, made_rows])
        if self.normalised:
            rows = nn.functional.normalize(rows, dim=1)
        return _Heads(own, rows, right)

    def loss(self, step: Step, own: nn.Module) -> Float[Tensor, ""]:
        """CE(own head) · own_weight + CE(frozen head) · influence, where that head has a row."""
        assert isinstance(own, _Heads)
        assert step.labels is not None
        entropy = nn.functional.cross_entropy
        # Of the vectors, so that a batch of which no class is known still has a gradient: zero.
        loss = 0 * step.query.sum()
        if own.own is not None:
            loss = self.own_weight * entropy(own.own(step.query, step.labels), step.labels)
        right = own.right[step.rows]
        known = right >= 0
        if bool(known.any()):
            logits = self._frozen(step.query[known], own.rows, right[known])
            loss = loss + self.influence * entropy(logits, right[known])
        return loss

    def _frozen(
        self, query: Float[Tensor, "b d"], rows: Float[Tensor, "c d"], right: Int64[Tensor, " b"]
    ) -> Float[Tensor, "b c"]:
        logits = query @ rows.T
        if not self.normalised:
            return logits
        margins = torch.zeros_like(logits).scatter(1, right[:, None], self.margin)
        return self.scale * (logits - margins)


def _mean_vector(setup: Setup, members: Tensor) -> Float[Tensor, " d"]:
    """The unit mean of the gallery model's vectors of some pictures, over all views."""
    vectors = torch.from_numpy(setup.gallery[:, members.numpy()].copy())
    return nn.functional.normalize(vectors.mean((0, 1)), dim=0)
