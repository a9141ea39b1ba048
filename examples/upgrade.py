"""A new gallery model in the old one's space, and which query version works in which index."""

from __future__ import annotations

from _places import places

from hetero.fit import Settings
from hetero.progress import Reporter
from hetero.stages.versioning import version_matrix
from hetero.train import UpgradeRecipe, train_upgrade

here = places()
quiet = Reporter(quiet=True)

# Two epochs, so that this runs in seconds; leave `epochs` and `keep_going` away for real.
new = train_upgrade(
    here.gallery,
    here.images,
    UpgradeRecipe(backbone="resnet:width=4", method="regression", views=0),
    Settings(epochs=2, batch=16, keep_going=True),
    here.output / "gallery2",
    reporter=quiet,
)
assert new.space == here.gallery.space, "old and new vectors may stand in one index"

# The gallery model's own queries are a version too: new queries in the old index, and the reverse.
versions = version_matrix([here.query, new], [here.gallery, new], here.images, quiet)
for cell in versions.matrix.cells:
    recall = cell.judged["recall_at_1"].score
    print(f"{cell.name}: Recall@1 {recall.value:.0%} ({cell.kind})")
for claim in (*versions.matrix.failing, *versions.matrix.undecided):
    print(f"- {claim}")
