"""Stage: two models that are already trained made compatible, by a map between their spaces.

Both models embed the same training pictures, a map is fitted to the pairs of vectors, and the query
model with the map behind it (or folded into it) is a query bundle in the gallery model's space. No
encoder is trained and no label is used; labels, where there are any, only score the result, on
validation classes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32

from hetero.bundle import Bundle, FittedMap
from hetero.data import Images
from hetero.errors import ConfigError, SpaceMismatchError
from hetero.evaluate import Scores, scores
from hetero.progress import Reporter
from hetero.space import Embeddings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hetero.maps import Map
    from hetero.models import EmbeddingNet
    from hetero.train._pictures import Pictures

#: Tries every map of `hetero.maps` and keeps the one with the best validation mAP.
AUTO = "auto"


@dataclass(frozen=True)
class AlignOptions:
    """How to align.

    Attributes:
        map: A module of `hetero.maps`, a dotted path, or "auto".
        settings: Of the map, where they differ from its defaults; none with "auto".
        views: Augmented views of each training picture to make pairs of, besides the plain one.
        seed: Of the views and of whatever the map draws.
    """

    map: str = "procrustes"
    settings: Mapping[str, Any] = field(default_factory=dict)
    views: int = 1
    seed: int = 0


@dataclass(frozen=True)
class Aligned:
    """What came of it.

    Attributes:
        bundle: The query model in the gallery model's space.
        map: The map's name.
        folded: Whether the map costs nothing at run time.
        pairs: Pairs of vectors it was fitted to.
        fit_s: Seconds it took to fit, embedding excluded.
        before: Validation scores of the query model as it was, its vectors taken for vectors of
            the gallery model's space; None where the lengths differ.
        after: Of the aligned query model in the gallery model's index.
        both_sides: Of the aligned query model on both sides; None without labels, because then a
            picture finds itself.
        paragon: Of the gallery model on both sides; None without labels.
    """

    bundle: Bundle
    map: str
    folded: bool
    pairs: int
    fit_s: float
    before: Scores | None
    after: Scores
    both_sides: Scores | None
    paragon: Scores | None


def align(
    query: Bundle,
    gallery: Bundle,
    images: Images,
    output: Path,
    options: AlignOptions,
    reporter: Reporter,
) -> Aligned:
    """The query bundle's model in the gallery bundle's space, as a new bundle in `output`.

    Args:
        query: Any trained model with the gallery model's preprocessing.
        gallery: Whose space it is to come into.
        images: Its training split gives the pairs, its validation split the scores.
        output: Folder of the new bundle.
        options: Which map, and from what.
        reporter: Shows progress.

    Raises:
        ConfigError: Unknown map or setting, an output that would overwrite an input, or a query
            model that already has a map behind it.
        SpaceMismatchError: The two prepare pictures differently.
        DataError: Too few pairs, or nothing to validate on.
    """
    from hetero import maps, models
    from hetero.train._pictures import gather

    if output.resolve() in (query.root.resolve(), gallery.root.resolve()):
        raise ConfigError(f"{output}: holds one of the two models; choose another --output")
    if query.manifest.model.map is not None:
        raise ConfigError(
            f"{query.root}: has a map ({query.manifest.model.map.name}) behind it already; align "
            "the bundle that it was made from"
        )
    if query.preprocess != gallery.preprocess:
        raise SpaceMismatchError(
            f"{query.root}: its preprocessing differs from that of {gallery.root} "
            f"({query.preprocess.size_px} and {gallery.preprocess.size_px} px), and models of one "
            "space have to see one picture the same way; train one of them with the other's"
        )
    if options.map == AUTO and options.settings:
        raise ConfigError("--set: settings belong to one map; name it with --map instead of auto")
    names = maps.names() if options.map == AUTO else (options.map,)
    chosen = {name: maps.make(name, options.settings) for name in names}
    pictures = gather(images, gallery.preprocess, reporter)
    net, gallery_net = models.load(query), models.load(gallery)
    source = pairs_of(net, query, pictures, options, reporter)
    target = pairs_of(gallery_net, gallery, pictures, options, reporter)
    theirs = watched(gallery_net, gallery, pictures, "gallery model")
    best: tuple[tuple[float, bool], str, EmbeddingNet, float, Embeddings] | None = None
    with reporter.bar("fit map", len(chosen)) as bar:
        for name, kind in chosen.items():
            begun = time.monotonic()
            fitted = maps.fit(kind, source, target, options.seed)
            seconds = time.monotonic() - begun
            made = _joined(net, name, kind, fitted, gallery.space.dim)
            ours = watched(made, gallery, pictures, f"query model with {name}")
            # Of equals, one that costs nothing.
            worth = (_scores(pictures, ours, theirs).map.value, made.fitted is None)
            if best is None or worth > best[0]:
                best = (worth, name, made, seconds, ours)
            bar.advance(1)
    assert best is not None
    _, name, made, seconds, ours = best
    before = None
    if query.space.dim == gallery.space.dim:
        plain = watched(net, query, pictures, "query model").pretend_in(gallery.space)
        before = _scores(pictures, plain, theirs)
    bundle = _write(
        output, made, query, gallery, images, pictures, name, chosen[name], options, len(source)
    )
    return Aligned(
        bundle=bundle,
        map=name,
        folded=made.fitted is None,
        pairs=len(source),
        fit_s=seconds,
        before=before,
        after=_scores(pictures, ours, theirs),
        both_sides=_scores(pictures, ours, ours) if images.labelled else None,
        paragon=_scores(pictures, theirs, theirs) if images.labelled else None,
    )


def pairs_of(
    net: EmbeddingNet,
    bundle: Bundle,
    pictures: Pictures,
    options: AlignOptions,
    reporter: Reporter,
    batch: int = 256,
) -> Float32[np.ndarray, "n d"]:
    """A model's unit rows of the training pictures, plain and in each view, one after another."""
    import torch

    from hetero._processes import processes
    from hetero.augment import Augment, View, gather, identity

    pixels, device = pictures.pixels, processes().device
    # Drawn anew for each model, from one seed: both see the same views.
    generator = torch.Generator().manual_seed(options.seed)
    count = len(pixels)
    tables = [identity(count), *(Augment().draw(count, generator) for _ in range(options.views))]
    view, out = View(bundle.preprocess).to(device), []
    net.to(device)
    with (
        torch.no_grad(),
        reporter.bar(f"embed with {bundle.root.name}", len(tables) * count) as bar,
    ):
        for table in tables:
            for at in range(0, count, batch):
                rows = torch.arange(at, min(at + batch, count))
                some = gather(pixels, rows, table[rows]).to(device)
                out.append(net(view(some, table[rows].to(device))).cpu().numpy())
                bar.advance(len(rows))
    net.cpu()
    return np.concatenate(out)


def _joined(net: EmbeddingNet, name: str, kind: Map, fitted: nn.Module, dim: int) -> EmbeddingNet:
    """The query model with the fitted map folded into it, or behind it where that is not exact."""
    import copy

    from hetero import maps
    from hetero.models._mapped import MappedNet, folded

    turn: Tensor | None = maps.matrix(fitted)
    if turn is not None:
        return folded(net, turn)
    record = FittedMap(name=name, settings=maps.settings_of(kind), dim=net.dim)
    made = MappedNet(copy.deepcopy(net), record, dim)
    made.map.load_state_dict(fitted.state_dict())
    return made.eval()


def watched(net: EmbeddingNet, bundle: Bundle, pictures: Pictures, who: str) -> Embeddings:
    """A model's vectors of the validation pictures, in the bundle's space."""
    from hetero import models

    rows = models.embed_pixels(net, bundle.preprocess, pictures.watched)
    return Embeddings.normalised(bundle.space, pictures.watch.ids, rows, who)


def _scores(pictures: Pictures, query: Embeddings, gallery: Embeddings) -> Scores:
    return scores(pictures.watch.rank(query, gallery))


def _write(
    root: Path,
    net: EmbeddingNet,
    query: Bundle,
    gallery: Bundle,
    images: Images,
    pictures: Pictures,
    name: str,
    kind: Map,
    options: AlignOptions,
    pairs: int,
) -> Bundle:
    """The bundle; of its encoder's training it keeps what the query bundle tells."""
    from hetero import maps, models
    from hetero.train._writing import run_digest, write

    was = query.manifest
    inherited = {k: v for k, v in was.recipe.items() if k.startswith(("train.", "augment."))}
    recipe = {
        "backbone": was.model.backbone,
        "method": f"align:{name}",
        **{f"map.{k}": v for k, v in maps.settings_of(kind).items()},
        "views": options.views,
        "seed": options.seed,
        "pairs": pairs,
        "source": query.digest,
        "source_space": query.space.id,
    }
    # It must be scored on no class that either training has seen.
    seen = tuple(sorted({*query.train_classes(), *pictures.classes}))
    return write(
        root,
        run=run_digest({**recipe, "parent": gallery.digest, "data": images.digest}, None),
        net=net,
        role="query",
        space=gallery.space,
        backbone=was.model.backbone,
        preprocess=query.preprocess,
        recipe={**inherited, **recipe},
        settings=None,
        parent=gallery.digest,
        images=images,
        pictures=replace(pictures, classes=seen),
        tensors={"weights": models.arrays(net)},
    )
