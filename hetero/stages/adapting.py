"""Stages: linearised fine-tuning of a bundle, and what can be done with its adaptations.

A bundle's backbone learns classes of one's own: pictures in, an `hetero.lqf.Adaptation` out, scored
on pictures that were held out. Adaptations of one base are combined, and exported as model files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hetero.bundle import Artifact, Bundle
from hetero.data import Images
from hetero.errors import ConfigError, DataError
from hetero.progress import Reporter

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hetero.fit import Settings as TrainSettings
    from hetero.lqf import Adaptation, Settings

#: Share of each class's pictures that training does not see.
HELD_OUT = 0.2

#: Pictures a call where nothing is learnt.
_SOME = 128


@dataclass(frozen=True)
class Adapted:
    """What came of a training.

    Attributes:
        path: The adaptation's file.
        classes: How many.
        pictures: Trained on.
        held_out: Scored on.
        start: Share of held-out pictures that the base names rightly, 0..1; the linear probe's,
            where the base was made here.
        accuracy: That of the linearised model.
        objective: After each epoch.
        silent: Activations of the backbone that are not leaky.
    """

    path: Path
    classes: int
    pictures: int
    held_out: int
    start: float
    accuracy: float
    objective: tuple[float, ...]
    silent: int


def leaky(
    bundle: Bundle,
    images: Images,
    settings: TrainSettings,
    output: Path,
    *,
    views: int = 4,
    resume: bool = False,
    reporter: Reporter,
) -> Bundle:
    """A bundle whose backbone has leaky activations and embeds as the given one does.

    The weights are taken over and trained on, by `hetero.train`, until the vectors are those of the
    bundle again; labels are not needed. What comes out is a query bundle in the same space.

    Args:
        bundle: Of a gallery model.
        images: Pictures to look at.
        settings: Of the training; it is short.
        output: Folder of the new bundle.
        views: Stored augmented views, see `hetero.train.QueryRecipe`.
        resume: Go on from the checkpoint.
        reporter: Shows progress.

    Raises:
        ConfigError: Its backbone is leaky already, has nothing to turn, or the bundle is a query
            model's or was aligned.
    """
    from hetero import models
    from hetero.train import QueryRecipe
    from hetero.train._pictures import Pictures
    from hetero.train._writing import finished
    from hetero.train.query import fit_and_write, run_of

    model = bundle.manifest.model
    if model.map is not None or bundle.role != "gallery":
        raise ConfigError(
            f"{bundle.root}: a gallery bundle without a map is needed; train a query model with "
            f"--backbone leaky:{model.backbone} instead"
        )
    if model.backbone.startswith("leaky:"):
        raise ConfigError(f"{bundle.root}: its backbone {model.backbone} is leaky already")
    recipe = QueryRecipe(f"leaky:{models.architecture(model.backbone)}", "regression", views=views)
    run = {**run_of(bundle, images, recipe), "from": bundle.digest}
    if resume and (done := finished(output, run, settings)):
        return done

    def build(_: Pictures) -> nn.Module:
        net = models.build(recipe.backbone, model.dim, bundle.preprocess.size_px, model.inner)
        net.load_state_dict(models.load(bundle).state_dict())
        return net

    return fit_and_write(
        build, bundle, images, recipe, settings, output, run, None, resume, reporter
    )


def train(
    bundle: Bundle,
    images: Images,
    classes: Sequence[str],
    settings: Settings,
    output: Path,
    *,
    base: Adaptation | None = None,
    go_on: bool = False,
    penalty: float = 1.0,
    reporter: Reporter,
) -> Adapted:
    """An adaptation of the bundle's backbone to these classes, in the file `output`.

    Args:
        bundle: Its backbone is linearised.
        images: A part of each class's pictures is held out, see `split`.
        classes: Which of the collection's; without `base` they are the outputs, in this order.
        settings: See `hetero.lqf.Settings`.
        output: A .safetensors file.
        base: An adaptation whose base (head and classes) is taken, so that the two can be added;
            without it the head is the linear probe's.
        go_on: Start at that adaptation's change instead of at none; where training ends does not
            depend on it.
        penalty: Of the linear probe.
        reporter: Shows progress.

    Raises:
        DataError: No labels, or a class with fewer than two pictures to train on and hold out.
        ConfigError: Classes that the collection or the base does not have.
        TrainingError, MissingExtraError: See `hetero.lqf.fit`.
    """
    from hetero import lqf, models
    from hetero._processes import processes
    from hetero.lqf.probe import ridge

    outputs = base.classes if base is not None else tuple(classes)
    if absent := sorted(set(classes) - set(outputs)):
        raise ConfigError(
            f"{images.name}: class {absent[0]!r} is none of the base's {len(outputs)}; leave it "
            "out with --classes, or train a base of its own"
        )
    device = processes().device
    seen, held = split(images, classes)
    number = {name: at for at, name in enumerate(outputs)}
    (x, y), (x_held, y_held) = (
        tuple(t.to(device) for t in _tensors(images, rows, number, bundle, reporter))
        for rows in (seen, held)
    )
    if base is None:
        backbone = models.load(bundle).backbone.to(device)
        features = _rows(backbone, x).cpu()
        head = ridge(features, y.cpu(), len(outputs), alpha=settings.alpha, penalty=penalty)
        net = lqf.base(bundle, head)
        model = lqf.DualStream(net, lqf.example(bundle))
    else:
        head = dict(base.head)
        model = lqf.linearised(bundle, base)
        net = model.net
        if not go_on:
            model.forget()
    digest = lqf.digest_of(net)
    model.to(device)
    start = _accuracy(net, x_held, y_held)
    if model.silent:
        reporter.line(
            f"{bundle.root}: {model.silent} activations of {bundle.manifest.model.backbone} are "
            "not leaky, and a linearised model learns less of such; see `hetero lqf leaky`"
        )
    objective = lqf.fit(model, x, y, settings, reporter=reporter)
    done = lqf.Adaptation(
        bundle=bundle.digest,
        base=digest,
        classes=tuple(outputs),
        head=head,
        change={name: tensor.cpu() for name, tensor in model.delta.items()},
        recipe={
            "method": "lqf",
            **asdict(settings),
            "penalty": penalty,
            "source": images.name,
            "digest": images.digest,
            "trained_classes": len(classes),
            "pictures": len(seen),
        },
    )
    done.save(output)
    return Adapted(
        path=output,
        classes=len(outputs),
        pictures=len(seen),
        held_out=len(held),
        start=start,
        accuracy=_accuracy(model, x_held, y_held),
        objective=tuple(objective),
        silent=model.silent,
    )


def chosen(images: Images, names: str) -> tuple[str, ...]:
    """The classes that a command line names, ``a,b,c``, in alphabetical order; "" for all.

    Raises:
        ConfigError: The collection does not have one of them.
    """
    there = set(images.labels)
    wanted = {part.strip() for part in names.split(",")} if names else there
    if absent := sorted(wanted - there):
        near = ", ".join(sorted(there)[:8])
        raise ConfigError(f"{images.name}: no class {absent[0]!r}; there are {near}, ...")
    return tuple(sorted(wanted))


def split(images: Images, classes: Sequence[str]) -> tuple[list[int], list[int]]:
    """Row numbers to train on and to hold out, of each class about a fifth, by hash of the group.

    Pictures of one group and class are on the same side.

    Raises:
        DataError: No labels, or a class with fewer than two groups.
    """
    if not images.labelled:
        raise DataError(f"{images.name}: no labels; classes are learnt from labelled pictures")
    groups: dict[str, set[str]] = {name: set() for name in classes}
    for label, group in zip(images.labels, images.groups, strict=True):
        if label in groups:
            groups[label].add(group)
    held: set[tuple[str, str]] = set()
    for name, there in groups.items():
        if len(there) < 2:
            raise DataError(
                f"{images.name}: class {name!r} has {len(there)} pictures (or groups of them), at "
                "least 2 are needed: one to learn from and one to be held out"
            )
        order = sorted(there, key=lambda g: hashlib.sha256(g.encode()).hexdigest())
        held |= {(name, group) for group in order[: max(1, round(HELD_OUT * len(order)))]}
    rows = [r for r, label in enumerate(images.labels) if label in groups]
    out = {r for r in rows if (images.labels[r], images.groups[r]) in held}
    return [r for r in rows if r not in out], sorted(out)


def score(bundle: Bundle, adaptation: Adaptation, images: Images) -> tuple[float, int]:
    """Share of held-out pictures that a linearised model names rightly, and how many there are.

    Args:
        bundle: Of the backbone.
        adaptation: Of it.
        images: Those of its classes that it knows are split as `train` splits them.

    Raises:
        DataError: The collection has none of the classes.
    """
    from hetero import lqf

    known = [name for name in adaptation.classes if name in set(images.labels)]
    if not known:
        raise DataError(f"{images.name}: has none of the adaptation's classes")
    _, held = split(images, known)
    number = {name: at for at, name in enumerate(adaptation.classes)}
    x, y = _tensors(images, held, number, bundle, Reporter(quiet=True))
    return _accuracy(lqf.linearised(bundle, adaptation), x, y), len(held)


def combine(bundle: Bundle, parts: Sequence[tuple[Path, float]], output: Path) -> Adaptation:
    """The weighted sum of adaptations, in the file `output`; it was built once to see it fits.

    Raises:
        ConfigError: They are of different bases, or of another bundle.
        BundleError: A file is missing or torn.
    """
    from hetero import lqf

    total = lqf.combine([(lqf.Adaptation.load(path), share) for path, share in parts])
    lqf.linearised(bundle, total)
    total.save(output)
    return total


def export(
    bundle: Bundle,
    adaptation: Path,
    formats: Sequence[str],
    folder: Path,
    *,
    bake: bool,
    batch: int | None,
    reporter: Reporter,
) -> tuple[Artifact, ...]:
    """A float32 model file of each format, each held to the Jacobian-vector product."""
    from hetero.export import _linear

    made = []
    with reporter.bar("export", len(formats)) as bar:
        for format in formats:
            item = _linear.export(
                bundle, adaptation, format, folder, bake=bake, batch=batch, on_line=reporter.line
            )
            made.append(item)
            bar.advance(1)
    return tuple(made)


def _tensors(
    images: Images,
    rows: Sequence[int],
    number: dict[str, int],
    bundle: Bundle,
    reporter: Reporter,
) -> tuple[Tensor, Tensor]:
    """Pictures as the backbone takes them, and their class numbers."""
    import torch

    from hetero.train._pictures import decoded

    pixels = decoded(images, tuple(rows), bundle.preprocess, reporter)
    x = torch.from_numpy(np.ascontiguousarray(bundle.preprocess.tensor(pixels)))
    return x, torch.tensor([number[images.labels[r]] for r in rows])


def _rows(net: nn.Module, x: Tensor) -> Tensor:
    """What a net gives for all pictures."""
    import torch

    with torch.no_grad():
        return torch.cat([net(part) for part in torch.split(x, _SOME)])


def _accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    return float((_rows(net, x).argmax(1) == y).float().mean())
