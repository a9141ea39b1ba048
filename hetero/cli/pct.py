"""Classifiers that do not break what the one before got right."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hetero.cli._helpers import (
    precision,
    preprocess_for,
    reporter,
    say,
    settings,
    show_bundle,
    show_bundles,
)
from hetero.cli._options import (
    Batch,
    InventoryFile,
    Json,
    KeepGoing,
    Mixed,
    Output,
    Quiet,
    Rate,
    Resume,
    Seed,
    Set,
    Size,
    SplitName,
)
from hetero.cli.machines import chosen
from hetero.errors import ConfigError

if TYPE_CHECKING:
    from hetero.pct.metrics import Rates
    from hetero.stages.flipping import Compared

app = typer.Typer(
    no_args_is_help=True,
    help="Classifiers that do not break what the one before got right (positive-congruent "
    "training).",
)

Pictures = Annotated[
    str,
    typer.Option(
        "--data",
        "-d",
        help="A closed set: a folder of class folders, or one with train/ and test/ of the same "
        "classes. Other collections are split by picture.",
    ),
]
Backbone = Annotated[
    str, typer.Option(help="mobilenet:width=0.5, resnet:width=16, timm:NAME, package.module:name")
]
Views = Annotated[
    int, typer.Option(min=0, help="Augmented views the old model answers for beforehand.")
]
Flip = Annotated[
    float, typer.Option(min=0, max=1, help="Probability of a mirror image among the views.")
]


@app.command()
def train(
    data: Pictures = "",
    output: Output = Path("runs/classifier"),
    old: Annotated[
        list[Path] | None,
        typer.Option("--old", help="The classifier before, or an ensemble's folder. Repeatable."),
    ] = None,
    backbone: Backbone = "mobilenet:width=0.5",
    size: Size = 0,
    method: Annotated[
        str,
        typer.Option(
            help="none, naive, focal_kl, focal_logit, ldi, bct, a dotted path of your own, or "
            "auto: none without --old, ldi after an ensemble, else focal_logit."
        ),
    ] = "auto",
    set_: Set = None,
    views: Views = 8,
    flip: Flip = 0.0,
    vectors: Annotated[
        Path | None, typer.Option(help="Keep the old model's logits here, for other runs.")
    ] = None,
    epochs: Annotated[int, typer.Option()] = 30,
    batch: Batch = 128,
    lr: Rate = 3e-3,
    mixed: Mixed = "no",
    seed: Seed = 0,
    resume: Resume = False,
    keep_going: KeepGoing = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a classifier, held to the one before by a method."""
    from hetero.augment import Augment
    from hetero.fit import Settings
    from hetero.pct.train import ClassifierRecipe, train_classifier
    from hetero.stages import flipping

    before = [b for root in old or [] for b in flipping.members(root)]
    if method == "auto":
        method = ("none", "focal_logit", "ldi")[min(2, len(before))]
    bundle = train_classifier(
        flipping.load_closed(data, before[0] if before else None),
        ClassifierRecipe(backbone, method, settings(set_), views),
        preprocess_for(backbone, size),
        Settings(
            epochs=epochs,
            batch=batch,
            lr=lr,
            seed=seed,
            keep_going=keep_going,
            mixed_precision=precision(mixed),
            augment=Augment(flip=flip),
        ),
        output,
        old=before,
        vectors=vectors,
        resume=resume,
        reporter=reporter(quiet),
    )
    show_bundle(bundle, json_)


@app.command()
def ensemble(
    data: Pictures = "",
    output: Output = Path("runs/ensemble"),
    members: Annotated[int, typer.Option(min=2, help="How many; each has a seed of its own.")] = 4,
    backbone: Backbone = "mobilenet:width=0.5",
    size: Size = 0,
    views: Views = 8,
    flip: Flip = 0.0,
    epochs: Annotated[int, typer.Option()] = 30,
    batch: Batch = 128,
    lr: Rate = 3e-3,
    seed: Seed = 0,
    resume: Resume = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train an ensemble for `train --method ldi --old FOLDER` (ELODI); compare takes it too."""
    from hetero.augment import Augment
    from hetero.fit import Settings
    from hetero.pct.train import ClassifierRecipe, train_ensemble
    from hetero.stages import flipping

    made = train_ensemble(
        flipping.load_closed(data),
        ClassifierRecipe(backbone, "none", None, views),
        preprocess_for(backbone, size),
        Settings(epochs=epochs, batch=batch, lr=lr, seed=seed, augment=Augment(flip=flip)),
        output,
        members,
        resume=resume,
        reporter=reporter(quiet),
    )
    show_bundles(made, json_)


@app.command()
def compare(
    old: Annotated[Path, typer.Argument(help="Classifier (or ensemble) that is in use.")],
    new: Annotated[Path, typer.Argument(help="What is to replace it; with --format the same.")],
    data: Pictures = "",
    split: Annotated[SplitName, typer.Option(help="Which pictures.")] = SplitName.test,
    format: Annotated[
        str, typer.Option("--format", "-f", help="A model file of NEW instead of PyTorch.")
    ] = "",
    precision: Annotated[str, typer.Option("--precision", "-p", help="Of that file.")] = "",
    device: Annotated[
        str, typer.Option(help="Where the file runs; without it in this process.")
    ] = "",
    inventory: InventoryFile = None,
    max_nfr: Annotated[
        float | None,
        typer.Option("--max-nfr", help="Share of negative flips that is too much: 0.01 for 1 %."),
    ] = None,
    alpha: Annotated[
        float, typer.Option(min=1e-6, max=0.5, help="Chance to pass what flips more.")
    ] = 0.05,
    beta: Annotated[
        float, typer.Option(min=1e-6, max=0.5, help="Chance to fail what flips less.")
    ] = 0.05,
    output: Output = Path("runs/flips"),
    resume: Resume = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """What the new classifier breaks and mends; exit code 1 or 3 if that is or may be too much."""
    from hetero.stages import flipping

    if split is SplitName.all:
        raise ConfigError("--split all: name one split; training pictures say nothing")
    before = flipping.side(old)
    found = flipping.compare(
        before,
        flipping.side(new, format, precision, device),
        flipping.load_closed(data, before.bundles[0]),
        output,
        split=split.value,  # type: ignore[arg-type]
        most=max_nfr,
        alpha=alpha,
        beta=beta,
        inventory=chosen([device], inventory)[1] if device else None,
        resume=resume,
        reporter=reporter(quiet),
    )
    say(json_, found.to_json(), _text(found))
    raise typer.Exit(found.exit_code)


def _text(found: Compared) -> str:
    rates = found.flips.overall
    left = [
        f"{count:,} {why}"
        for count, why in (
            (found.trained, "that a classifier was trained on"),
            (found.unknown, "of a class that one does not know"),
        )
        if count
    ]
    lines = [
        f"old: {found.old}",
        f"new: {found.new}",
        f"{rates.n:,} pictures{'; left out: ' + ', '.join(left) if left else ''}",
        *_rows(rates),
    ]
    if worst := found.flips.worst():
        lines.append("classes with most negative flips:")
        lines += [
            f"  {name}: {_percent(r.nfr.value)} of {r.n} (error "
            f"{_percent(r.er_old.value)} -> {_percent(r.er_new.value)})"
            for name, r in worst
        ]
    if found.decision is not None and found.most is not None:
        d = found.decision
        more = f"; about {d.more_queries:,} pictures more would decide" if d.more_queries else ""
        lines.append(
            f"negative flips at most {_percent(found.most)}: {d.outcome} "
            f"(they are at least {_percent(max(0.0, d.low))}, at most {_percent(d.high)}{more})"
        )
    return "\n".join(lines)


def _rows(rates: Rates) -> list[str]:
    named = (
        ("error of the old", rates.er_old),
        ("error of the new", rates.er_new),
        ("negative flips", rates.nfr),
        ("positive flips", rates.pfr),
    )
    lines = []
    for name, score in named:
        low, high = score.ci or (score.value, score.value)
        lines.append(
            f"  {name:<24}{_percent(score.value):>8}  ({_percent(low)} to {_percent(high)})"
        )
    if (relative := rates.relative_nfr) is None:
        return [
            *lines,
            "  relative negative flips   undefined: the old is never right or the new never wrong",
        ]
    low, high = relative.ci or (relative.value, relative.value)
    note = "1 if errors were independent"
    return [
        *lines,
        f"  relative negative flips {relative.value:8.3f}  ({low:.3f} to {high:.3f}); {note}",
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
