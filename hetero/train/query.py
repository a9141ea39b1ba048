"""Training of query models into a gallery model's space, against its stored vectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hetero import methods, models
from hetero._files import make_folder
from hetero._processes import processes
from hetero.augment import View
from hetero.bundle import Bundle
from hetero.data import Images
from hetero.errors import ConfigError
from hetero.fit import Check, Settings, fit
from hetero.models import _nested as nested
from hetero.progress import Reporter
from hetero.train._objective import QueryObjective, setup_for
from hetero.train._pictures import Pictures, gather, score
from hetero.train._stored import drawn_views, stored_vectors
from hetero.train._writing import finished, run_digest, spoken_by_one, write

__all__ = [
    "QAT_RATE",
    "QUERY_LR",
    "QueryObjective",
    "QueryRecipe",
    "fit_and_write",
    "fit_query",
    "run_of",
    "setup_for",
    "train_query",
    "train_widths",
    "write_query",
]


@dataclass(frozen=True)
class QueryRecipe:
    """What a query model is.

    Attributes:
        backbone: See `hetero.models.backbone`.
        method: A module of `hetero.methods` or a dotted path, or several joined by "+".
        settings: Its hyper-parameters, where they differ from the defaults.
        views: How many augmented views of each picture the gallery model embeds once, beforehand;
            the query model sees the same views. 0: it sees fresh views, and the gallery's vector
            of the plain picture.
        dim: Length of what the query model itself gives before it is lifted into the space; 0 for
            the space's own.
        qat: Epochs of quantisation-aware training at the end: weights and activations are rounded
            to int8 in the forward pass while the loss pulls towards the float gallery's vectors.
            The bundle keeps float weights, which lose less when they are exported to int8.
    """

    backbone: str = "mobilenet:width=0.5"
    method: str = "regression"
    settings: Mapping[str, Any] | None = None
    views: int = 0
    dim: int = 0
    qat: int = 0

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        if self.views < 0 or self.qat < 0:
            raise ConfigError(
                f"views and qat count views and epochs, 0 for none; got {self.views} and {self.qat}"
            )


#: Peak learning rate of query models: against exact targets a rate that a classifier would not bear
#: is the better one (docs/results.md, learning rate).
QUERY_LR = 1e-2

#: Of the peak learning rate, in quantisation-aware training: the model is trained already.
QAT_RATE = 0.1


def train_query(
    gallery: Bundle,
    images: Images,
    recipe: QueryRecipe,
    settings: Settings,
    root: Path,
    *,
    vectors: Path | None = None,
    resume: bool = False,
    reporter: Reporter,
) -> Bundle:
    """The bundle of a query model trained into the gallery bundle's space.

    The gallery model embeds the training pictures once, before training; the vectors are stored and
    memory-mapped, and the gallery model never runs while the query model trains.

    Args:
        gallery: Fixes space, dimension and preprocessing.
        images: As for `train_gallery`; they need labels only if the method does.
        recipe: Backbone, method and views.
        settings: As for `train_gallery`.
        root: As for `train_gallery`.
        vectors: Folder where the gallery's vectors are kept for other runs; without it they are in
            training/ and deleted at the end.
        resume: As for `train_gallery`.
        reporter: As for `train_gallery`.

    Raises:
        ConfigError: The method needs labels or a head that are not there.
        TrainingError, Interrupted: See `hetero.fit.fit`.
    """
    run = run_of(gallery, images, recipe)
    if resume and (done := finished(root, run, settings)):
        reporter.line(f"query model: {root} is finished")
        return done
    size_px = gallery.preprocess.size_px

    def build(_: Pictures) -> nn.Module:
        return models.build(recipe.backbone, gallery.space.dim, size_px, inner=recipe.dim)

    return fit_and_write(
        build, gallery, images, recipe, settings, root, run, vectors, resume, reporter
    )


def train_widths(
    gallery: Bundle,
    images: Images,
    recipe: QueryRecipe,
    widths: Sequence[float],
    settings: Settings,
    root: Path,
    *,
    vectors: Path | None = None,
    resume: bool = False,
    reporter: Reporter,
) -> tuple[Bundle, ...]:
    """One bundle for each width of a query model, all trained in one run, the narrowest first.

    Narrower models are leading channels of the widest one, with batch norms of their own. Each
    step trains the narrowest, the widest and one between, all held to the gallery's vectors: Yu and
    Huang's sandwich rule (ICCV 2019, arXiv:1903.05134), with the frozen gallery model in place of
    the widest model as in-place teacher.

    Args:
        gallery: See `train_query`.
        images: See `train_query`.
        recipe: Its backbone's width is replaced by each of `widths`.
        widths: At least two.
        settings: See `train_query`.
        root: Gets width-W/ for each width.
        vectors: See `train_query`.
        resume: See `train_query`.
        reporter: See `train_query`.

    Raises:
        ConfigError: The backbone has no width, or the widths cannot share weights.
        TrainingError, Interrupted: See `hetero.fit.fit`.
    """
    ordered = sorted(set(widths))
    if recipe.qat:
        raise ConfigError("quantisation-aware training is for one width at a time")
    if len(ordered) < 2:
        raise ConfigError(f"widths: at least two different ones, got {list(widths)}")
    run = {**run_of(gallery, images, recipe), "widths": ordered}
    folders = [root / f"width-{width:g}" for width in ordered]
    own = [{**run, "width": width} for width in ordered]
    done = [finished(f, r, settings) for f, r in zip(folders, own, strict=True)] if resume else []
    if done and all(done):
        reporter.line(f"query models: {root} is finished")
        return tuple(b for b in done if b)
    specs = [nested.with_width(recipe.backbone, width) for width in ordered]
    size_px = gallery.preprocess.size_px

    def build(_: Pictures) -> nn.Module:
        nets = [models.build(s, gallery.space.dim, size_px, inner=recipe.dim) for s in specs]
        return nested.Nested(nets)

    net, pictures = fit_query(
        build, gallery, images, recipe, settings, root, run, vectors, resume, reporter
    )
    assert isinstance(net, nested.Nested)
    return tuple(
        write_query(
            folder,
            of,
            net.extract(at),
            replace(recipe, backbone=spec),
            gallery,
            images,
            pictures,
            settings,
            {"widths": ", ".join(f"{w:g}" for w in ordered)},
        )
        for at, (folder, of, spec) in enumerate(zip(folders, own, specs, strict=True))
    )


# -- the pieces ---------------------------------------------------------------------------------


def run_of(gallery: Bundle, images: Images, recipe: QueryRecipe) -> dict[str, Any]:
    """What a run is, without its length and seed."""
    chosen = methods.settings_of(methods.make(recipe.method, dict(recipe.settings or {})))
    return {
        "role": "query",
        "recipe": {**asdict(recipe), "settings": chosen},
        "parent": gallery.digest,
        "data": images.digest,
    }


def fit_query(
    build: Callable[[Pictures], nn.Module],
    gallery: Bundle,
    images: Images,
    recipe: QueryRecipe,
    settings: Settings,
    root: Path,
    run: dict[str, Any],
    vectors: Path | None,
    resume: bool,
    reporter: Reporter,
) -> tuple[nn.Module, Pictures]:
    """The trained net, and the pictures it was trained on."""
    method = methods.make(recipe.method, dict(recipe.settings or {}))
    if "labels" in method.needs and not images.labelled:
        raise ConfigError(
            f"method {recipe.method} needs labels, and {images.name} has none; use a label-free "
            "method such as regression"
        )
    if "independent" in method.needs:
        raise ConfigError(
            f"method {recipe.method} holds one gallery model to another, see `hetero upgrade "
            "train`; a query model is held by regression and others"
        )
    reporter = spoken_by_one(reporter)
    preprocess = gallery.preprocess
    pictures = gather(images, preprocess, reporter)
    torch.manual_seed(settings.seed)
    net = build(pictures)
    gallery_net = models.load(gallery).to(processes().device)
    folder = make_folder(root / "training")
    if settings.augment.mix and not recipe.views:
        raise ConfigError(
            "blended pictures need the gallery model's vectors of the very same blends: "
            "set views to at least 1"
        )
    tables = drawn_views(settings, len(pictures.pixels), recipe.views)
    stored = stored_vectors(
        make_folder(vectors) if vectors else folder,
        gallery,
        gallery_net,
        pictures.pixels,
        tables,
        run["data"],
        settings,
        reporter,
    )
    gallery_side = models.embed_pixels(gallery_net, preprocess, pictures.watched)

    def validate(net: nn.Module) -> Check:
        alone = net.narrowest if isinstance(net, nested.Several) else net
        return score(
            pictures.watch, models.embed_pixels(alone, preprocess, pictures.watched), gallery_side
        )

    setup = setup_for(gallery, method, pictures, stored, settings.seed)
    settings = replace(settings, keep_going=settings.keep_going or methods.is_control(method))
    own = method.own(setup)

    def phase(net: nn.Module, settings: Settings, folder: Path, what: str) -> None:
        fit(
            QueryObjective(net, method, own, View(preprocess), setup, tables),
            pictures.pixels,
            settings,
            folder=folder,
            identity=run,
            validate=validate,
            resume=resume,
            reporter=reporter,
            what=what,
        )

    phase(net, settings, folder, f"train query ({recipe.method})")
    if recipe.qat:
        from hetero.models._quantised import Quantised

        rounded = Quantised(net, torch.zeros(2, 3, preprocess.size_px, preprocess.size_px))
        # Rounding to int8 is learnt in float32: half would round a second time.
        again = replace(
            settings, epochs=recipe.qat, lr=settings.lr * QAT_RATE, mixed_precision="no"
        )
        phase(rounded, again, make_folder(folder / "qat"), "train query as int8")
        rounded.release()
    return net, pictures


def fit_and_write(
    build: Callable[[Pictures], nn.Module],
    gallery: Bundle,
    images: Images,
    recipe: QueryRecipe,
    settings: Settings,
    root: Path,
    run: dict[str, Any],
    vectors: Path | None,
    resume: bool,
    reporter: Reporter,
    more: Mapping[str, Any] | None = None,
) -> Bundle:
    """The bundle of the one query model that `build` begins."""
    net, pictures = fit_query(
        build, gallery, images, recipe, settings, root, run, vectors, resume, reporter
    )
    assert isinstance(net, models.EmbeddingNet)
    return write_query(root, run, net, recipe, gallery, images, pictures, settings, more)


def write_query(
    root: Path,
    run: Mapping[str, Any],
    net: models.EmbeddingNet,
    recipe: QueryRecipe,
    gallery: Bundle,
    images: Images,
    pictures: Pictures,
    settings: Settings,
    more: Mapping[str, Any] | None = None,
) -> Bundle:
    """A finished query model as a bundle; see `hetero.train._writing.write`."""
    chosen = methods.settings_of(methods.make(recipe.method, dict(recipe.settings or {})))
    return write(
        root,
        run=run_digest(run, settings),
        net=net,
        role="query",
        space=gallery.space,
        nested=gallery.nested,
        backbone=recipe.backbone,
        preprocess=gallery.preprocess,
        recipe={
            "backbone": recipe.backbone,
            "method": recipe.method,
            "views": recipe.views,
            "qat": recipe.qat,
            **(more or {}),
            **{f"method.{k}": v for k, v in chosen.items()},
        },
        settings=settings,
        parent=gallery.digest,
        images=images,
        pictures=pictures,
        tensors={"weights": models.arrays(net)},
    )
