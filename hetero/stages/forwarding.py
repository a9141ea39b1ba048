"""Stage: a map that leads stored vectors of one gallery model into the space of the next."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hetero.bundle import Bundle
from hetero.data import Images
from hetero.errors import ConfigError, SpaceMismatchError
from hetero.evaluate import Scores, scores
from hetero.progress import Reporter
from hetero.stages import aligning

if TYPE_CHECKING:
    from hetero.maps._stored import StoredMap


@dataclass(frozen=True)
class Mapped:
    """A map for stored vectors, and what it is worth on validation classes.

    Attributes:
        map: The map.
        pairs: It was fitted to.
        before: The old model in its own index.
        mapped: The new model in the old index, mapped.
        after: The new model in its own index.
    """

    map: StoredMap
    pairs: int
    before: Scores
    mapped: Scores
    after: Scores


def forward_map(
    old: Bundle,
    new: Bundle,
    images: Images,
    options: aligning.AlignOptions,
    output: Path,
    reporter: Reporter,
    *,
    side: Bundle | None = None,
) -> Mapped:
    """A map from stored vectors of the old model into the new model's space, written to a file.

    Args:
        old: Gallery bundle whose vectors are stored.
        new: Gallery bundle whose space they are to come into; trained as one likes.
        images: Its training split gives the pairs, its validation split the scores.
        options: Which map (not "auto"), and from what.
        output: The file, safetensors.
        reporter: Shows progress.
        side: The model of the side information that is stored with each old vector.

    Raises:
        ConfigError: Unknown map or setting.
        SpaceMismatchError: The models prepare pictures differently.
        DataError: Too few pairs, or nothing to validate on.
    """
    from hetero import maps, models
    from hetero.maps._stored import StoredMap
    from hetero.train._pictures import gather

    bundles = [old, new, *([side] if side else [])]
    for bundle in bundles:
        if bundle.preprocess != old.preprocess:
            raise SpaceMismatchError(
                f"{bundle.root}: its preprocessing differs from that of {old.root}; pairs are made "
                "of pictures that both see the same way"
            )
    if not images.labelled:
        raise ConfigError(f"{images.name}: no labels, by which a mapped index is scored")
    kind = maps.make(options.map, options.settings)
    pictures = gather(images, old.preprocess, reporter)
    nets = [models.load(b) for b in bundles]
    made = [
        aligning.pairs_of(net, b, pictures, options, reporter)
        for net, b in zip(nets, bundles, strict=True)
    ]
    watched = [
        aligning.watched(net, b, pictures, b.root.name)
        for net, b in zip(nets, bundles, strict=True)
    ]
    source = made[0]
    if side:
        source = np.concatenate([made[0], made[2]], axis=1) / np.float32(np.sqrt(2))
    fitted = maps.fit(kind, source, made[1], options.seed)
    led = StoredMap(
        options.map,
        maps.settings_of(kind),
        old.space,
        new.space,
        fitted,
        side.space if side else None,
    )
    led.save(output)
    moved = led.apply(watched[0], watched[2] if side else None)
    before, mapped, after = (
        scores(pictures.watch.rank(q, g))
        for q, g in ((watched[0], watched[0]), (watched[1], moved), (watched[1], watched[1]))
    )
    return Mapped(led, len(source), before, mapped, after)
