"""An index between two gallery models: refresh, forward maps, which app versions break when.

Commands of ``hetero upgrade``, beside those of `hetero.cli.upgrade`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hetero.cli._helpers import (
    brief,
    brief_row,
    leave,
    load_bundle,
    numbers,
    reporter,
    say,
    settings,
)
from hetero.cli._options import Data, Json, Output, Quiet, Set
from hetero.errors import ConfigError

#: How shares are written, for who did not.
SHARES = "0,0.5,1"


def refresh(
    old: Annotated[Path, typer.Argument(help="Gallery bundle whose rows are in the index.")],
    new: Annotated[Path, typer.Argument(help="Gallery bundle that re-embeds them.")],
    data: Data = "",
    query: Annotated[
        Path | None, typer.Option(help="What asks: a query bundle; else the new gallery model.")
    ] = None,
    control: Annotated[
        Path | None, typer.Option(help="A model trained without the constraint, to compare.")
    ] = None,
    map: Annotated[
        Path | None, typer.Option(help="A map by `hetero upgrade map`, for old rows first.")
    ] = None,
    metric: Annotated[str, typer.Option(help="recall_at_1, recall_at_5 or map")] = "map",
    shares: Annotated[str, typer.Option(help="Re-embedded shares, 0 to 1.")] = (
        "0,0.125,0.25,0.375,0.5,0.625,0.75,0.875,1"
    ),
    orders: Annotated[int, typer.Option(min=1, help="Random orders to take the mean of.")] = 3,
    output: Output = Path("runs/refresh"),
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Curves of a gallery that is re-embedded bit by bit, at random or the uncertain first."""
    from hetero.stages import embedding, refreshing

    parent = load_bundle(old, "gallery")
    done = refreshing.refresh(
        parent,
        load_bundle(new, "gallery"),
        embedding.load_images(data, parent),
        refreshing.RefreshOptions(metric, numbers("--shares", shares, SHARES), orders, map),
        output,
        reporter(quiet),
        query=load_bundle(query) if query else None,
        control=load_bundle(control) if control else None,
    )
    width = max(len(n) for n in (*done.curves, "re-embedded, %")) + 2
    first = next(iter(done.curves.values()))
    lines = [
        f"{metric}, old model in its index {100 * done.before:.1f}, all re-embedded "
        f"{100 * done.complete:.1f}",
        f"{'re-embedded, %':<{width}}"
        + "".join(f"{100 * s:7.1f}" for s in first.shares)
        + "   area",
        *(
            f"{name:<{width}}"
            + "".join(f"{100 * s:7.1f}" for s in curve.scores)
            + f"{100 * curve.area:7.1f}"
            for name, curve in done.curves.items()
        ),
        f"verdict: {done.outcome} (no compatible curve may fall more than 1 point below its start)",
        f"curves: {output / 'refresh.svg'}",
    ]
    say(json_, done.to_json(metric), "\n".join(lines))
    leave(done.outcome)


def map(
    old: Annotated[Path, typer.Argument(help="Gallery bundle whose vectors are stored.")],
    new: Annotated[Path, typer.Argument(help="Gallery bundle whose space they come into.")],
    data: Data = "",
    map: Annotated[
        str, typer.Option("--map", help="procrustes, affine, residual_mlp or a dotted path.")
    ] = "residual_mlp",
    set_: Set = None,
    side: Annotated[
        Path | None, typer.Option(help="Bundle whose vectors were stored beside the old ones.")
    ] = None,
    views: Annotated[int, typer.Option(min=0, help="Augmented views, besides plain pictures.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the views and of trained maps.")] = 0,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A safetensors file for the map.")
    ] = Path("runs/map.safetensors"),
    apply: Annotated[
        Path | None, typer.Option(help="Stored vectors, by `hetero embed`, to be mapped too.")
    ] = None,
    apply_side: Annotated[
        Path | None, typer.Option(help="Their side information, where --side is given.")
    ] = None,
    mapped: Annotated[Path, typer.Option(help="Where --apply writes the mapped vectors.")] = Path(
        "runs/mapped.safetensors"
    ),
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Lead stored vectors of an old gallery model into a new one's space."""
    from hetero.space import Embeddings
    from hetero.stages import aligning, embedding, forwarding

    if map == aligning.AUTO:
        raise ConfigError("--map auto is for `hetero align`; name one map for stored vectors")
    parent = load_bundle(old, "gallery")
    done = forwarding.forward_map(
        parent,
        load_bundle(new, "gallery"),
        embedding.load_images(data, parent),
        aligning.AlignOptions(map, settings(set_), views, seed),
        output,
        reporter(quiet),
        side=load_bundle(side) if side else None,
    )
    if apply is not None:
        more = Embeddings.load(apply_side) if apply_side else None
        done.map.apply(Embeddings.load(apply), more).save(mapped)
    rows = (
        ("before", "old model, old index", done.before),
        ("mapped", "new model, old index mapped", done.mapped),
        ("after", "new model, new index", done.after),
    )
    value = {
        "map": str(output),
        "pairs": done.pairs,
        "source": done.map.source.id,
        "target": done.map.target.id,
        **{key: brief(found) for key, _, found in rows},
    }
    lines = [
        f"map {map} from {done.map.source.id} into {done.map.target.id}: {done.pairs:,} pairs, "
        f"{output}",
        f"{'validation':<31}Recall@1     mAP",
        *(f"  {name:<29}{brief_row(found)}" for _, name, found in rows),
    ]
    say(json_, value, "\n".join(lines))


def plan(
    file: Annotated[
        Path,
        typer.Argument(
            help="A plan.toml: index, [[generation]]s and [[cohort]]s; docs/upgrades.md."
        ),
    ],
    data: Data = "",
    shares: Annotated[
        str, typer.Option(help="Of the rows to be re-embedded, at which to measure, 0 to 1.")
    ] = "0,0.25,0.5,0.75,1",
    repeats: Annotated[int, typer.Option(min=1, help="Random indexes to take the mean of.")] = 2,
    sample: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the queries asked of mixed indexes.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Of random indexes, orders and the sample.")] = 0,
    output: Output = Path("runs/plan"),
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Which app versions break, when, and in which order to re-embed: forecast, cost and time."""
    from hetero import backfill
    from hetero.stages import embedding, planning

    asked = backfill.load(file)
    generations = [load_bundle(Path(g.bundle), "gallery") for g in asked.generation]
    done = planning.plan(
        asked,
        generations,
        [load_bundle(Path(c.bundle)) for c in asked.cohort],
        embedding.load_images(data, generations[-1]),
        planning.Effort(numbers("--shares", shares, SHARES), repeats, sample, seed),
        output,
        reporter(quiet),
    )
    if json_:
        say(True, done.to_json(), "")
    else:
        from rich.console import Console

        from hetero.render import backfill as render

        render.show(done, Console(highlight=False))
        print(f"forecast: {output / 'plan.json'}, {output / 'plan.svg'}")
    leave(done.outcome)
