"""Training of a new gallery model into the space of an older one.

The index stays as it is: new vectors and old ones may stand in it side by side, and query models in
the field go on working. The new model has a classifier of its own, on the whole vector, and is held
to one or several older gallery models by any of `hetero.methods` against their stored vectors.

A longer vector is possible: its first numbers, normalised, are in the older space, and the bundle
says so (`Bundle.nested`). A shorter one is lifted into the space by a last linear layer, as query
models are.

Paper: Shen, Xiong, Xia and Soatto, "Towards Backward-Compatible Representation Learning", CVPR
    2020, arXiv:2003.11942.
Differs: the influence loss is one of several that can be asked for (`hetero.methods.bct`), by
    default with cosine regression beside it; both models see the same stored views.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor, nn

from hetero import methods, models
from hetero._files import make_folder
from hetero._processes import processes
from hetero.augment import View
from hetero.bundle import Bundle, space_digest
from hetero.data import Images
from hetero.errors import ConfigError, SpaceMismatchError
from hetero.fit import Check, Objective, Settings, fit
from hetero.heads import CosineHead, Margin, simplex
from hetero.progress import Reporter
from hetero.space import Space
from hetero.train._objective import setup_for
from hetero.train._pictures import Pictures, gather, must_have_classes, score
from hetero.train._stored import drawn_views, stored_rows, stored_vectors
from hetero.train._writing import (
    bytes_digest,
    finished,
    head_arrays,
    head_of,
    run_digest,
    space_name,
    spoken_by_one,
    write,
)


@dataclass(frozen=True)
class UpgradeRecipe:
    """What a compatible new gallery model is.

    Attributes:
        backbone: See `hetero.models.backbone`.
        method: What holds it to the older model, a module of `hetero.methods` or several joined by
            "+".
        settings: Its hyper-parameters, where they differ from the defaults; `bct` has no classifier
            of its own here (own_weight 0) unless it is asked for.
        dim: Length of the new vector; 0 for the older one's. See the module for others.
        head: Of the own classifier, see `hetero.heads.CosineHead`; "simplex" goes on where an older
            model with such a classifier left off.
        scale: Of the classifier's cosines.
        margin: Of the classifier.
        views: Stored views of each picture, as in `hetero.train.QueryRecipe`.
    """

    backbone: str = "resnet:width=16"
    method: str = "bct+regression"
    settings: Mapping[str, Any] | None = None
    dim: int = 0
    head: Margin = "cosine"
    scale: float = 16.0
    margin: float = 0.1
    views: int = 8

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        if self.views < 0 or self.dim < 0:
            raise ConfigError(
                f"views and dim are counts, 0 for none; got {self.views} and {self.dim}"
            )

    def made(self) -> methods.Method:
        """The method with its settings."""
        parts = self.method.split("+")
        given = dict(self.settings or {})
        if "bct" in parts:
            given.setdefault("own_weight" if len(parts) == 1 else "bct.own_weight", 0.0)
        return methods.make(self.method, given)


class Held(nn.Module):
    """An older model that the new one is held to: the method, and what it keeps for this one."""

    def __init__(
        self, method: methods.Method, own: nn.Module, setup: methods.Setup, dim: int
    ) -> None:
        """See the class; `dim` numbers of the new vector are in the older one's space."""
        super().__init__()
        self.method, self.own, self.setup, self.dim = method, own, setup, dim


class UpgradeObjective(Objective):
    """The own classifier's cross-entropy, and the mean of what holds to each older model."""

    def __init__(
        self,
        net: nn.Module,
        head: CosineHead,
        held: Sequence[Held],
        view: View,
        labels: Tensor,
        tables: list[Tensor],
    ) -> None:
        """Net and classifier, the older models, how pictures are seen, their class numbers."""
        super().__init__()
        self.net, self.head, self.view, self.tables = net, head, view, tables
        self.held = nn.ModuleList(held)
        self.register_buffer("labels", labels, persistent=False)

    def forward(
        self, pixels: Tensor, views: Tensor, rows: Tensor, epoch: int, progress: float
    ) -> Tensor:
        """CE(own classifier, whole vector) + mean over older models of the method's loss."""
        labels = self.labels[rows]  # type: ignore[index]
        vectors = self.net(self.view(pixels, views))
        loss = nn.functional.cross_entropy(self.head(vectors, labels), labels)
        for older in self.held:
            assert isinstance(older, Held)
            theirs = torch.from_numpy(stored_rows(older.setup.gallery, epoch, rows))
            ours, alone = vectors, None
            if older.dim < vectors.shape[1]:
                ours = nn.functional.normalize(vectors[:, : older.dim], dim=1)
            if older.setup.independent is not None:
                alone = torch.from_numpy(stored_rows(older.setup.independent, epoch, rows))
                alone = alone.to(pixels.device)
            step = methods.Step(
                ours, theirs.to(pixels.device), rows, labels, progress, vectors, alone
            )
            loss = loss + methods.loss_of(older.method, step, older.own) / len(self.held)
        return loss


def train_upgrade(
    old: Bundle,
    images: Images,
    recipe: UpgradeRecipe,
    settings: Settings,
    root: Path,
    *,
    ancestors: Sequence[Bundle] = (),
    independent: Bundle | None = None,
    vectors: Path | None = None,
    resume: bool = False,
    reporter: Reporter,
) -> Bundle:
    """The bundle of a new gallery model in (or around) the older one's space.

    Args:
        old: The gallery model that is to be replaced; its preprocessing is kept.
        images: What the new model learns from; classes may be new, or more.
        recipe: Backbone, length, what holds it.
        settings: As for `train_gallery`.
        root: As for `train_gallery`.
        ancestors: Gallery models older than `old` to be held to as well, whose vectors are in the
            same space or in one that it holds: the chain loss.
        independent: A model like the new one, trained on its own, for the methods that need it;
            with the older model's preprocessing.
        vectors: As for `train_query`.
        resume: As for `train_gallery`.
        reporter: As for `train_gallery`.

    Raises:
        DataError: No labels, or fewer than two classes to train on.
        ConfigError: The method needs a classifier or an independent model that is not there, or
            takes none; or a simplex has no vertex left.
        SpaceMismatchError: An ancestor's space is not one that `old` is in or holds.
        TrainingError, Interrupted: See `hetero.fit.fit`.
    """
    older = (old, *ancestors)
    method = recipe.made()
    run: dict[str, Any] = {
        "role": "upgrade",
        "recipe": {**asdict(recipe), "settings": methods.settings_of(method)},
        "parents": [b.digest for b in older],
        "data": images.digest,
        **({"independent": independent.digest} if independent else {}),
    }
    if resume and (done := finished(root, run, settings)):
        reporter.line(f"upgraded gallery model: {root} is finished")
        return done
    must_have_classes(images, settings)
    dim = max(recipe.dim or old.space.dim, old.space.dim)
    for bundle in ancestors:
        _must_hold(old, bundle)
    _must_suit(recipe.method, method, old, independent)
    reporter = spoken_by_one(reporter)
    preprocess = old.preprocess
    pictures = gather(images, preprocess, reporter)
    assert pictures.labels is not None
    torch.manual_seed(settings.seed)
    inner = recipe.dim if 0 < recipe.dim < old.space.dim else 0
    net = models.build(recipe.backbone, dim, preprocess.size_px, inner=inner)
    head = _head(old, recipe, dim, pictures.classes)
    folder = make_folder(root / "training")
    tables = drawn_views(settings, len(pictures.pixels), recipe.views)

    def embedded(bundle: Bundle, net: nn.Module) -> Float32[np.ndarray, "v n d"]:
        return stored_vectors(
            make_folder(vectors) if vectors else folder,
            bundle,
            net,
            pictures.pixels,
            tables,
            run["data"],
            settings,
            reporter,
        )

    alone = None
    if independent:
        alone = embedded(independent, models.load(independent).to(processes().device))
    held, watched = [], None
    for bundle in older:
        theirs = models.load(bundle).to(processes().device)
        setup = replace(
            setup_for(bundle, method, pictures, embedded(bundle, theirs), settings.seed),
            length=dim,
            independent=alone,
        )
        held.append(Held(method, method.own(setup), setup, bundle.space.dim))
        if watched is None:
            watched = models.embed_pixels(theirs, preprocess, pictures.watched)
    against = watched
    assert against is not None

    def validate(net: nn.Module) -> Check:
        ours = models.embed_pixels(net, preprocess, pictures.watched)
        return score(pictures.watch, _first(ours, old.space.dim), against)

    fit(
        UpgradeObjective(net, head, held, View(preprocess), pictures.labels, tables),
        pictures.pixels,
        settings,
        folder=folder,
        identity=run,
        validate=validate,
        resume=resume,
        reporter=reporter,
        what=f"train upgrade ({recipe.method})",
    )
    weights = models.arrays(net)
    space, nested = old.space, old.nested
    if dim > old.space.dim:
        digest = space_digest(bytes_digest(weights), preprocess, dim)
        space, nested = Space(space_name(recipe.backbone), digest, dim), (old.space, *old.nested)
    # None may be scored on a class that another has seen: they are compared.
    others = (*older, *((independent,) if independent else ()))
    seen = {*pictures.classes, *(c for b in others for c in b.train_classes())}
    return write(
        root,
        run=run_digest(run, settings),
        net=net,
        role="gallery",
        space=space,
        nested=nested,
        backbone=recipe.backbone,
        preprocess=preprocess,
        recipe={
            **{k: v for k, v in asdict(recipe).items() if k not in ("settings", "method")},
            "method": f"upgrade:{recipe.method}",
            **{f"method.{k}": v for k, v in methods.settings_of(method).items()},
            "ancestors": " ".join(b.digest for b in ancestors),
            "independent": independent.digest if independent else "",
        },
        settings=settings,
        parent=old.digest,
        images=images,
        pictures=replace(pictures, classes=tuple(sorted(seen))),
        tensors={"weights": weights, "head": _classifier(old, head, pictures)},
    )


def _must_hold(old: Bundle, ancestor: Bundle) -> None:
    """Nothing, if old vectors are in the ancestor's space or begin with one that is."""
    spaces = (old.space, *old.nested)
    if not any(s.same_as(ancestor.space) for s in spaces):
        raise SpaceMismatchError(
            f"{ancestor.root}: its space {ancestor.space.id} is not one of those that {old.root} "
            f"is in ({', '.join(s.id for s in spaces)}); a chain holds to its own ancestors only"
        )


def _must_suit(name: str, method: methods.Method, old: Bundle, independent: Bundle | None) -> None:
    """Nothing, if there is an independent model where the method needs one, and none otherwise."""
    needed = "independent" in method.needs
    if needed and independent is None:
        raise ConfigError(
            f"method {name} needs the new model trained on its own: `hetero train gallery` with "
            "the same --backbone and --data, and then --independent with that bundle"
        )
    if independent is None:
        return
    if not needed:
        raise ConfigError(f"method {name} has no use for an independent model; bt2 has")
    if independent.preprocess != old.preprocess:
        raise ConfigError(
            f"{independent.root}: its pictures are prepared differently from those of {old.root}; "
            "train it with that one's --size and the same normalisation"
        )


def _first(rows: Float32[np.ndarray, "n d"], dim: int) -> Float32[np.ndarray, "n e"]:
    """The first `dim` numbers of each row, normalised."""
    some = rows[:, :dim]
    first: Float32[np.ndarray, "n e"] = some / np.linalg.norm(some, axis=1, keepdims=True)
    return first


def _head(old: Bundle, recipe: UpgradeRecipe, dim: int, classes: Sequence[str]) -> CosineHead:
    """The own classifier: rows that the older model has are taken over as they are, or to begin.

    Raises:
        ConfigError: A simplex is to be gone on with, and the older classifier is none.
    """
    head = CosineHead(dim, len(classes), recipe.scale, recipe.margin, recipe.head)
    fixed = recipe.head == "simplex"
    if not fixed and not any(f.kind == "head" for f in old.manifest.files):
        return head
    rows, names = head_of(old)
    place = {name: row for row, name in enumerate(names)}
    known = [at for at, name in enumerate(classes) if name in place]
    theirs = nn.functional.normalize(rows[[place[classes[at]] for at in known]], dim=1)
    if not fixed:
        with torch.no_grad():
            head.weight[known, : old.space.dim] = theirs
            head.weight[known, old.space.dim :] = 0
        return head
    vertices = torch.from_numpy(simplex(dim))
    used = (rows @ vertices.T).argmax(1) if rows.shape[1] == dim else torch.zeros(len(rows)).long()
    if rows.shape[1] != dim or not torch.allclose(vertices[used], rows, atol=1e-4):
        raise ConfigError(
            f"{old.root}: its classifier is not a simplex in {dim} dimensions; train the first "
            "generation with head simplex, and each later one with the same dim"
        )
    free = sorted(set(range(dim + 1)) - set(used.tolist()))
    fresh = [at for at, name in enumerate(classes) if name not in place]
    if len(fresh) > len(free):
        raise ConfigError(
            f"{old.root}: {len(free)} vertices of its simplex are free, and there are {len(fresh)} "
            "new classes; the first generation needs a longer dim"
        )
    head.weight[known] = theirs
    head.weight[fresh] = vertices[free[: len(fresh)]]
    return head


def _classifier(old: Bundle, head: CosineHead, pictures: Pictures) -> dict[str, Any]:
    """What later generations are held to; of a simplex, also the vertices taken before."""
    rows, classes = head.rows().detach().cpu().numpy(), list(pictures.classes)
    if head.kind == "simplex":
        theirs, names = head_of(old)
        before = [at for at, name in enumerate(names) if name not in set(classes)]
        rows = np.concatenate([rows, theirs.numpy()[before]])
        classes += [names[at] for at in before]
    return head_arrays(rows, classes)
