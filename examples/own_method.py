"""A way to train of your own: one frozen dataclass, named by its dotted path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from hetero.methods import Setup, Step


@dataclass(frozen=True)
class Method:
    """Each query vector to within `slack` of the gallery's; nothing is asked of closer ones."""

    slack: float = 0.05
    needs: ClassVar[frozenset[str]] = frozenset()
    whole_batch: ClassVar[bool] = False

    def own(self, setup: Setup) -> nn.Module:
        return nn.Identity()

    def loss(self, step: Step, own: nn.Module) -> Tensor:
        apart = 1 - (step.query * step.gallery).sum(1)
        return (apart - self.slack).clamp(min=0).mean()


def main() -> None:
    from _places import places

    from hetero.fit import Settings
    from hetero.progress import Reporter
    from hetero.train import QueryRecipe, train_query

    here = places()
    made = train_query(
        here.gallery,
        here.images,
        # "own_method" is this file; "own_method+csd" adds a method of the package.
        QueryRecipe("mobilenet:width=0.25", "own_method", {"slack": 0.02}),
        Settings(epochs=2, batch=16, keep_going=True),
        here.output / "own-method",
        reporter=Reporter(quiet=True),
    )
    assert made.space == here.gallery.space
    print(f"{made.root}: trained by {made.manifest.recipe['method']} into {made.space.id}")


if __name__ == "__main__":
    main()
