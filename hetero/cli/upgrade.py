"""A new gallery model for an index that stays: training, and which versions find what in which."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hetero.cli import backfill
from hetero.cli._helpers import (
    leave,
    load_bundle,
    numbers,
    one_of,
    planned,
    precision,
    reporter,
    say,
    settings,
)
from hetero.cli._options import (
    Batch,
    Data,
    DryRun,
    Json,
    KeepGoing,
    Mixed,
    Output,
    Quiet,
    Rate,
    Resume,
    Seed,
    Set,
    Shard,
)
from hetero.errors import ConfigError

if TYPE_CHECKING:
    from hetero.stages.versioning import Versions

app = typer.Typer(
    no_args_is_help=True,
    help="Replace a gallery model without breaking what is in the field or in the index.",
)

#: How numbers are written, for who did not.
WEIGHTS = "0,10,30"

Metrics = Annotated[
    list[str] | None,
    typer.Option("--metric", help="recall_at_1, recall_at_5, map. Repeatable; default 1 and map."),
]


@app.command()
def train(
    old: Annotated[Path, typer.Option(help="Bundle of the gallery model that is replaced.")],
    ancestor: Annotated[
        list[Path] | None,
        typer.Option(
            help="An older gallery model to be held to as well, newest first. Repeatable."
        ),
    ] = None,
    independent: Annotated[
        Path | None,
        typer.Option(help="The new model trained on its own; --method bt2 needs it."),
    ] = None,
    data: Data = "",
    output: Output = Path("runs/upgrade"),
    backbone: Annotated[
        str, typer.Option(help="resnet:width=16, timm:NAME, package.module:function")
    ] = "resnet:width=16",
    method: Annotated[
        str, typer.Option(help="What holds it to the old one: bct+regression, ract, bt2, ...")
    ] = "bct+regression",
    set_: Set = None,
    sweep: Annotated[
        bool,
        typer.Option("--sweep", help="Try weights of bct+regression and draw the frontier."),
    ] = False,
    influences: Annotated[
        str, typer.Option(help="With --sweep: of the frozen classifier.")
    ] = "1,3,10",
    regressions: Annotated[str, typer.Option(help="With --sweep: of the pull to old vectors.")] = (
        "0,10,30"
    ),
    free: Annotated[
        bool,
        typer.Option(help="With --sweep: train without the constraint too, for gain and tax."),
    ] = True,
    dim: Annotated[
        int,
        typer.Option(
            min=0, help="Of the new vector: 0 as it was; longer: begins with the old space."
        ),
    ] = 0,
    head: Annotated[
        str, typer.Option(help="Of the own classifier: cosine, arcface, plain or simplex")
    ] = "cosine",
    views: Annotated[
        int, typer.Option(min=0, help="Augmented views the old model embeds beforehand.")
    ] = 8,
    epochs: Annotated[int, typer.Option()] = 30,
    batch: Batch = 128,
    lr: Rate = 3e-3,
    mixed: Mixed = "no",
    shard: Shard = False,
    seed: Seed = 0,
    resume: Resume = False,
    keep_going: KeepGoing = False,
    dry_run: DryRun = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a new gallery model into the old one's space; ends in a verdict on test classes."""
    from hetero.fit import Settings
    from hetero.heads import Margin
    from hetero.render.backfill import change
    from hetero.stages import embedding, estimating, upgrading
    from hetero.train import UpgradeRecipe, train_upgrade

    parent = load_bundle(old, "gallery")
    before = [load_bundle(path, "gallery") for path in ancestor or []]
    alone = load_bundle(independent, "gallery") if independent else None
    images = embedding.load_images(data, parent)
    recipe = UpgradeRecipe(
        backbone, method, settings(set_), dim, one_of("--head", head, Margin), views=views
    )
    how = Settings(
        epochs=epochs,
        batch=batch,
        lr=lr,
        seed=seed,
        keep_going=keep_going,
        mixed_precision=precision(mixed),
        shard=shard,
    )
    if dry_run:
        tries = len(influences.split(",")) * len(regressions.split(",")) + free if sweep else 1
        planned(
            estimating.training(
                images,
                backbone,
                dim or parent.space.dim,
                parent.preprocess,
                how,
                teacher=parent,
                views=views,
                models=tries,
            ),
            json_,
        )
        return
    told = reporter(quiet)
    if sweep:
        if method != "bct+regression":
            raise ConfigError("--sweep is over the weights of bct+regression; leave --method away")
        if alone:
            raise ConfigError("--sweep trains its own independent model; leave --independent away")
        options = upgrading.SweepOptions(
            numbers("--influences", influences, WEIGHTS),
            numbers("--regressions", regressions, WEIGHTS),
            free=free,
        )
        bundle, tried, found = upgrading.sweep(
            parent, images, recipe, how, options, output, told, ancestors=before
        )
        head_lines = [
            f"validation mAP: old model in its index {100 * tried.before:.1f}"
            + (f", unconstrained in its own {100 * tried.free:.1f}" if tried.free else ""),
            f"  {'':<40}{'old index':>10}{'lead there':>24}{'own index':>10}",
            *(
                f"  {p.name:<40}{100 * p.crossed:>10.1f}"
                f"{change(p.leads['map']):>24}{100 * p.own:>10.1f}"
                f"{'  chosen' if p.name == tried.chosen else ''}"
                f"{'  frontier' if p.name in tried.frontier else ''}"
                for p in tried.points
            ),
            f"frontier: {output / 'frontier.svg'}",
        ]
        value = {"sweep": tried.to_json()}
    else:
        bundle = train_upgrade(
            parent,
            images,
            recipe,
            how,
            output,
            ancestors=before,
            independent=alone,
            resume=resume,
            reporter=told,
        )
        found = upgrading.verdict(
            parent, bundle, images, output, told, ancestors=before, free=alone
        )
        head_lines, value = [], {}
    text = [
        f"gallery bundle {bundle.root}: {recipe.backbone}, space {bundle.space.id}"
        + "".join(f", holds {s.id}" for s in bundle.nested),
        *head_lines,
        *_matrix_lines(found),
    ]
    say(json_, {"bundle": str(bundle.root), **value, **found.to_json()}, "\n".join(text))
    leave(found.matrix.outcome)


@app.command()
def matrix(
    query: Annotated[
        list[Path], typer.Argument(help="Query bundles in the field, or gallery bundles.")
    ],
    gallery: Annotated[list[Path], typer.Option(help="Gallery bundles, oldest first. Repeatable.")],
    data: Data = "",
    free: Annotated[
        Path | None,
        typer.Option(help="The newest model, trained without the constraint: gain and tax."),
    ] = None,
    metric: Metrics = None,
    margin: Annotated[
        float, typer.Option(min=0, max=1, help="What old queries may lose in a newer index.")
    ] = 0.01,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A JSON file for the result.")
    ] = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Every query version against every gallery version, with the criterion judged per metric."""
    from hetero import versions
    from hetero._files import write_json
    from hetero.stages import embedding, versioning

    galleries = [load_bundle(path, "gallery") for path in gallery]
    found = versioning.version_matrix(
        [load_bundle(path) for path in query],
        galleries,
        embedding.load_images(data, galleries[-1]),
        reporter(quiet),
        free=load_bundle(free) if free else None,
        metrics=tuple(metric or versions.JUDGED),
        margin=margin,
    )
    if output is not None:
        write_json(output, found.to_json())
    say(json_, found.to_json(), "\n".join(_matrix_lines(found)))
    leave(found.matrix.outcome)


for command in (backfill.refresh, backfill.map, backfill.plan):
    app.command()(command)


def _matrix_lines(found: Versions) -> list[str]:
    """A version matrix for people: a table for each metric, what fails, the verdict."""
    made = found.matrix
    wide = max(len(n) for n in (*made.queries, "query")) + 2
    # A name longer than its numbers would push the columns apart, and stands below the table.
    heads = {g: g if len(g) <= 8 else f"[{n}]" for n, g in enumerate(made.galleries, 1)}
    legend = ", ".join(f"{head} {g}" for g, head in heads.items() if head != g)
    marks = {"pass": "+", "fail": "x", "inconclusive": "?", None: " "}
    lines = []
    for metric in made.metrics:
        lines.append(f"{metric}, percent; query in rows, gallery in columns")
        lines.append(f"  {'':<{wide}}" + "".join(f"{g:>8}  " for g in heads.values()).rstrip())
        for q in made.queries:
            cells = [c.judged[metric] for c in made.cells if c.query == q]
            shown = "".join(f"{100 * j.score.value:>8.1f} {marks[j.outcome]}" for j in cells)
            lines.append(f"  {q:<{wide}}{shown}".rstrip())
        lines += [f"  indexes: {legend}"] if legend else []
        if made.average_compatibility and made.average_accuracy:
            lines.append(
                f"  average compatibility {made.average_compatibility[metric]:.2f}, "
                f"average accuracy {100 * made.average_accuracy[metric]:.1f}"
            )
        if metric in found.tax:
            gains = ", ".join(
                f"{'undefined' if g is None else f'{g:+.2f}'} in {name}"
                for name, g in found.gain[metric].items()
            )
            lines.append(
                f"  update gain {gains}; tax {100 * found.tax[metric].value:+.1f} points "
                f"(unconstrained {100 * found.free[metric].value:.1f})"
            )
    lines += [f"FAILS: {text}" for text in made.failing]
    lines += [f"undecided: {text}" for text in made.undecided]
    lines.append(f"verdict: {made.outcome}   (+ holds, x fails, ? undecided)")
    return lines
