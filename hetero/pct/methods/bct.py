"""Backward-compatible training as a control: it keeps an index usable, not answers unchanged.

The old classifier, frozen, has to work on the new model's features. Where negative flips are
counted this is not known to help: 6.39 % against 6.44 % without (arXiv:2011.09161, table 1).

Paper: Shen, Xiong, Xia and Soatto, "Towards Backward-Compatible Representation Learning", CVPR
    2020, arXiv:2003.11942.
Differs: features are not normalised, as the old head was trained on such; of features of another
    length the first are taken, or zeros added.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from hetero.pct.methods import Step, at_least


@dataclass(frozen=True)
class Method:
    """Cross-entropy under the new head and under the old one.

    Attributes:
        weight: Of the old head's term, the paper's lambda.
    """

    weight: float = 1.0
    needs: ClassVar[frozenset[str]] = frozenset({"head"})
    whole_batch: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        at_least(0, weight=self.weight)

    def loss(self, step: Step) -> Float[Tensor, ""]:
        """CE + weight · CE(old head on new features), over pictures of classes it knows."""
        loss = step.entropy().mean()
        assert step.head is not None
        assert step.columns is not None
        taken = step.head.weight.shape[1]
        features = step.features[:, :taken]
        features = nn.functional.pad(features, (0, taken - features.shape[1]))
        where = step.labels[:, None] == step.columns
        known = where.any(1)
        if not bool(known.any()):
            return loss
        logits = features[known] @ step.head.weight.T + step.head.bias
        right = where[known].to(step.labels.dtype).argmax(1)
        return loss + self.weight * nn.functional.cross_entropy(logits, right)
