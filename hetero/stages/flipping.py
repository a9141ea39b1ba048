"""Stage: one classifier against another, on pictures that neither was trained on."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, UInt8

from hetero import data, verdict
from hetero._files import make_folder, write_json
from hetero.bundle import MANIFEST, Artifact, Bundle
from hetero.data import Images, Split
from hetero.errors import ConfigError, DataError
from hetero.pct import metrics
from hetero.preprocess import Preprocess
from hetero.progress import Reporter
from hetero.report import EXIT_CODES
from hetero.stages.embedding import source_of
from hetero.verdict import Decision

if TYPE_CHECKING:
    from hetero.devices import Inventory

SCHEMA = "hetero.flips/1"

#: A comparison's pictures as a model takes them, decoded once for each way of preparing them.
Pixels = Callable[[Preprocess], UInt8[np.ndarray, "n s s 3"]]


@dataclass(frozen=True, eq=False)
class Side:
    """What answers: a classifier, an ensemble of them by its mean logits, or a file of one.

    Attributes:
        bundles: One, or the members.
        item: A model file of the one bundle; None for PyTorch.
        device: Where the file runs; "" for its runtime (or reference interpreter) in this process.
    """

    bundles: tuple[Bundle, ...]
    item: Artifact | None = None
    device: str = ""

    @property
    def name(self) -> str:
        """For people."""
        root = self.bundles[0].root
        if len(self.bundles) > 1:
            return f"{root.parent} ({len(self.bundles)} members)"
        if self.item is None:
            return f"{root} in PyTorch"
        return f"{root} {self.item.kind} {self.item.precision} on {self.device or 'this machine'}"

    @property
    def classes(self) -> tuple[str, ...]:
        """What it can answer."""
        return self.bundles[0].train_classes()


@dataclass(frozen=True, eq=False)
class Compared:
    """What a comparison found.

    Attributes:
        old, new: Names of the sides.
        flips: All rates.
        most: The share of negative flips that is allowed, or None.
        decision: What the evidence says about that; None where nothing is.
        trained: Pictures left out because one side was trained on them.
        unknown: Pictures left out because one side does not know their class.
    """

    old: str
    new: str
    flips: metrics.Comparison
    most: float | None
    decision: Decision | None
    trained: int
    unknown: int

    @property
    def exit_code(self) -> int:
        """0 pass or nothing judged, 1 fail, 3 inconclusive."""
        return EXIT_CODES[self.decision.outcome] if self.decision else 0

    def to_json(self) -> dict[str, Any]:
        """The comparison without its pictures."""
        gate = None
        if self.decision is not None:
            gate = {
                "max_nfr": self.most,
                "outcome": self.decision.outcome,
                **self.decision.to_json(),
            }
        return {
            "schema": SCHEMA,
            "old": self.old,
            "new": self.new,
            "overall": self.flips.overall.to_json(),
            "classes": {name: r.to_json() for name, r in self.flips.classes.items()},
            "worst_classes": [name for name, _ in self.flips.worst()],
            "left_out": {"trained_on": self.trained, "unknown_class": self.unknown},
            "gate": gate,
        }


def load_closed(spec: str, bundle: Bundle | None = None) -> Images:
    """The collection of this name as a closed set; for an empty one, what a bundle was trained on.

    A bare path of a folder means ``classes:``. Of a collection that is split by class the pictures
    are split anew, by `hetero.data.by_picture`.

    Raises:
        ConfigError: Nothing was named.
        DataError: The collection has no labels, or nothing usable.
    """
    spec = source_of(spec, bundle)
    images = data.load(f"classes:{spec}" if os.path.isdir(spec) else spec)
    return images if images.closed else data.by_picture(images)


def members(root: Path) -> tuple[Bundle, ...]:
    """The classifier in a folder, or the members of the ensemble in it.

    Raises:
        BundleError: There is neither.
        ConfigError: A bundle there is no classifier, or the members have different classes.
    """
    folders = [root]
    if not (root / MANIFEST).exists():
        found = [p.parent for p in root.glob(f"member-*/{MANIFEST}")]
        folders = sorted(found, key=lambda p: (len(p.name), p.name)) or [root]
    bundles = tuple(Bundle.load(folder) for folder in folders)
    for bundle in bundles:
        if bundle.role != "classifier":
            raise ConfigError(
                f"{bundle.root}: a {bundle.role} bundle, where a classifier is needed"
            )
        bundles[0].space.must_match(bundle.space, f"{bundle.root}: not the ensemble's classes")
    return bundles


def side(root: Path, format: str = "", precision: str = "", device: str = "") -> Side:
    """What is in a folder, or a model file of it.

    Args:
        root: Of a classifier or of an ensemble.
        format: Of a file; "" for PyTorch.
        precision: Of a file.
        device: See `Side`.

    Raises:
        ConfigError: Half of a file's name, a device without a file, a file of an ensemble.
        BundleError: There is no such file; see `members` too.
    """
    bundles = members(root)
    if not (format or precision or device):
        return Side(bundles)
    if not (format and precision):
        raise ConfigError("a model file is named by --format and --precision, both of them")
    if len(bundles) > 1:
        raise ConfigError(f"{root}: an ensemble has no model file; name one of its members")
    return Side(bundles, bundles[0].artifact(format, precision), device)


def compare(
    old: Side,
    new: Side,
    images: Images,
    output: Path,
    *,
    split: Split = "test",
    most: float | None = None,
    alpha: float = 0.05,
    beta: float = 0.05,
    inventory: Inventory | None = None,
    resume: bool = False,
    reporter: Reporter,
) -> Compared:
    """The new side held against the old one; every answer is in OUTPUT/flips.json before judging.

    Pictures that either side was trained on are left out, found by their pixels; so are pictures
    of a class that one of them does not know.

    Args:
        old: What was right before.
        new: What is to replace it.
        images: A closed set.
        output: For answers, and for the runs of devices.
        split: Which of its pictures.
        most: The share of negative flips that is too much, in 0..1; None for no verdict.
        alpha: At most this often a side passes that flips `most` or more.
        beta: At most this often one fails that flips less.
        inventory: Where names of devices are looked up.
        resume: Go on with device runs that were cut.
        reporter: Shows progress.

    Raises:
        DataError: No picture is left, or a verdict is asked for and the old side is never right.
        DeviceError: The device, or the way to it, failed.
    """
    if most is not None and not 0 < most < 1:
        raise ConfigError(f"--max-nfr is a share above 0 and below 1, 0.01 for 1 %; got {most}")
    both = set(old.classes) & set(new.classes)
    listed = images.rows(split)
    rows = [r for r in listed if images.labels[r] in both]
    if not rows:
        raise DataError(
            f"{images.name}: none of its {len(listed)} {split} pictures is of a class that both "
            f"classifiers know; they share {len(both)} classes"
        )
    ids = tuple(images.ids[r] for r in rows)

    @functools.cache
    def pixels(preprocess: Preprocess) -> UInt8[np.ndarray, "n s s 3"]:
        return images.pixels(rows, preprocess)

    seen = np.zeros(len(rows), bool)
    answers: list[list[str]] = []
    for which in (old, new):
        seen |= _trained(which, pixels)
        found = _answers(which, ids, pixels, output, inventory, resume, reporter)
        answers.append([which.classes[i] for i in found])
    labels = [images.labels[r] for r in rows]
    write_json(
        make_folder(output) / "flips.json",
        {
            "schema": SCHEMA,
            "old": {"name": old.name, "weights": [b.digest for b in old.bundles]},
            "new": {"name": new.name, "weights": [b.digest for b in new.bundles]},
            "data": images.digest,
            "split": split,
            "columns": ["id", "class", "old", "new", "trained on"],
            "answers": [
                list(row) for row in zip(ids, labels, *answers, seen.tolist(), strict=True)
            ],
        },
    )
    if seen.all():
        raise DataError(
            f"{images.name}: a classifier was trained on each of the {len(rows)} {split} pictures; "
            "compare on others, an accuracy on training pictures says nothing"
        )
    kept = np.flatnonzero(~seen)
    right = [np.array([a == y for a, y in zip(x, labels, strict=True)])[kept] for x in answers]
    flips = metrics.compare(
        right[0],
        right[1],
        [labels[i] for i in kept],
        # A group is one within its class: that is what a closed set keeps together.
        [f"{labels[i]}\n{images.groups[rows[i]]}" for i in kept],
    )
    if most is not None and not right[0].any():
        raise DataError(
            f"{old.name}: gets none of {len(kept)} pictures right, so nothing can turn wrong and "
            "--max-nfr has nothing to judge; is it the classifier that is in use?"
        )
    return Compared(
        old.name,
        new.name,
        flips,
        most,
        None if most is None else verdict.decide(flips.evidence, most, alpha, beta),
        int(seen.sum()),
        len(listed) - len(rows),
    )


def _trained(which: Side, pixels: Pixels) -> Bool[np.ndarray, " n"]:
    """Of each picture, whether one of a side's bundles was trained on it."""
    from hetero.pct import train

    each = [train.trained_on(b, pixels(b.preprocess)) for b in which.bundles]
    seen: Bool[np.ndarray, " n"] = np.any(each, axis=0)
    return seen


def _answers(
    which: Side,
    ids: Sequence[str],
    pixels: Pixels,
    output: Path,
    inventory: Inventory | None,
    resume: bool,
    reporter: Reporter,
) -> list[int]:
    """The number of the class that a side gives for each picture."""
    bundle = which.bundles[0]
    if which.item is None:
        from hetero import models

        logits = []
        with reporter.bar(f"classify by {which.name}", len(which.bundles)) as bar:
            for member in which.bundles:
                net, mine = models.load_any(member), pixels(member.preprocess)
                logits.append(models.embed_pixels(net, member.preprocess, mine))
                bar.advance(1)
        return [int(i) for i in np.mean(logits, axis=0).argmax(1)]
    if which.device:
        from hetero import devices
        from hetero.stages.running import untimed

        on = devices.DeviceEmbedder(
            devices.open_device(which.device, inventory),
            bundle,
            which.item,
            folder=make_folder(output / "runs"),
            plan=untimed(1),
            resume=resume,
        )
        # Logits scaled to length 1 by the embedder; their order is what is asked for.
        return [int(i) for i in on.embed(ids, pixels(bundle.preprocess)).vectors.argmax(1)]
    from hetero import export

    with export.FileEmbedder(bundle, which.item) as here:
        return [int(i) for i in here.embed(ids, pixels(bundle.preprocess)).vectors.argmax(1)]
