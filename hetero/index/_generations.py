"""An index while its gallery model is replaced: rows of the old model, and re-embedded ones.

Re-embedding takes days; what is searched meanwhile is two indexes. Which of them a query may search
follows from spaces alone:

* Old and new model in one space (`hetero upgrade train` at one length): every query searches both.
* The new space holds the old one (longer vectors): a query of the new model searches the new
  generation with its whole vector and the old one with the first numbers of it. A query of the old
  model, from an app that was not updated, searches the old generation only, so what is re-embedded
  is put there too, cut to its first numbers.

What was re-embedded answers by its new vector. Results are merged by cosine as it is: that cosines
to old and new rows are not on one scale is `hetero.refresh.Correction`'s matter, and there is none
here. More than two generations, and a cut-over that is seen by all clients at one moment, are not
either: the latter is an alias in the database.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hetero.errors import SpaceMismatchError
from hetero.index._index import Found, Index
from hetero.space import Embeddings, Space


@dataclass(frozen=True, eq=False)
class Generations:
    """Two generations of one index.

    Attributes:
        old: Rows by the model that is replaced.
        new: Rows by the one that replaces it.
        holds: Spaces that the first numbers of the new rows are in: `Bundle.nested` of the new
            gallery model.
    """

    old: Index
    new: Index
    holds: Sequence[Space] = ()

    def __post_init__(self) -> None:
        """Refuse two that have nothing to do with each other."""
        if not self._one_space and not _in(self.old.space, self.holds):
            raise SpaceMismatchError(
                f"generations: rows of {self.new.space.id} cannot stand beside rows of "
                f"{self.old.space.id}: they are of another space, and hold it not; train the new "
                "model with `hetero upgrade train`, or map the old rows with `hetero upgrade map`"
            )

    @property
    def _one_space(self) -> bool:
        return self.old.space.same_as(self.new.space)

    def refresh(self, rows: Embeddings) -> None:
        """Put re-embedded rows in; stopped between two steps, it can be done again.

        Args:
            rows: By the new gallery model.

        Raises:
            SpaceMismatchError: They are not of the new generation's space.
        """
        self.new.replace(rows)
        if self._one_space:
            # Only now: at every moment each row is in one of the two, and twice does no harm.
            self.old.delete(self.old.present(rows.ids))
        else:
            self.old.replace(rows.shortened(self.old.space))

    def search(self, queries: Embeddings, k: int, holds: Sequence[Space] = ()) -> Found:
        """The k best rows of the generations that the queries may search, best first.

        Args:
            queries: Of one model.
            k: How many.
            holds: Spaces that the queries' first numbers are in: `Bundle.nested` of their model.

        Raises:
            SpaceMismatchError: They may search neither.
            DataError: k is below 1.
        """
        theirs = _as(queries, self.new.space, holds)
        ours = _as(queries, self.old.space, holds)
        if theirs is None and ours is None:
            raise SpaceMismatchError(
                f"generations: queries by {queries.made_by} are of space {queries.space.id}; the "
                f"index has rows of {self.old.space.id} and {self.new.space.id}"
            )
        if theirs is None:
            assert ours is not None
            return self.old.search(ours, k)
        found = self.new.search(theirs, k)
        if ours is None:
            return found
        return _merged(found, self._not_refreshed(ours, k), k)

    def _not_refreshed(self, queries: Embeddings, k: int) -> Found:
        """The k best old rows that are not in the new generation."""
        kept: dict[int, list[tuple[str, float]]] = {}
        left, wide = list(range(len(queries))), k
        while left:
            asked = queries.take([queries.ids[row] for row in left])
            found = self.old.search(asked, wide)
            fresh = self.new.present({i for line in found.ids for i in line})
            again = []
            for row, line, scores in zip(left, found.ids, found.scores, strict=True):
                pairs = zip(line, scores.tolist(), strict=False)
                kept[row] = [(i, s) for i, s in pairs if i not in fresh][:k]
                # Too many were re-embedded: look further, if the index can give more.
                if len(kept[row]) < k and len(line) == wide:
                    again.append(row)
            left, wide = again, 2 * wide
        return Found.of([kept[row] for row in range(len(queries))])


def _as(queries: Embeddings, space: Space, holds: Sequence[Space]) -> Embeddings | None:
    """The queries as vectors of a space; None if they are not."""
    if queries.space.same_as(space):
        return queries
    return queries.shortened(space) if _in(space, holds) else None


def _in(space: Space, spaces: Sequence[Space]) -> bool:
    return any(space.same_as(one) for one in spaces)


def _merged(one: Found, other: Found, k: int) -> Found:
    """The k best of both; of equal ones those of the first."""
    lines = []
    for row in range(len(one.ids)):
        both = [
            pair
            for found in (one, other)
            for pair in zip(found.ids[row], found.scores[row].tolist(), strict=False)
        ]
        lines.append(sorted(both, key=lambda pair: -pair[1])[:k])
    return Found.of(lines)
