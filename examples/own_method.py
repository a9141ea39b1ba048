"""A way to train of your own: mine/slack.py, one frozen dataclass, named by its dotted path."""

from __future__ import annotations

from _places import places

from hetero.fit import Settings
from hetero.progress import Reporter
from hetero.train import QueryRecipe, train_query

here = places()
made = train_query(
    here.gallery,
    here.images,
    # Python finds `mine` because it lies beside this file; "mine.slack+csd" adds one of ours.
    QueryRecipe("mobilenet:width=0.25", "mine.slack", {"slack": 0.02}),
    Settings(epochs=2, batch=16, keep_going=True),
    here.output / "own-method",
    reporter=Reporter(quiet=True),
)
assert made.space == here.gallery.space
print(f"{made.root}: trained by {made.manifest.recipe['method']} into {made.space.id}")
