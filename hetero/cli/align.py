"""Two models that are already trained, made compatible."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hetero.cli._helpers import brief, brief_row, load_bundle, reporter, say, settings
from hetero.cli._options import Data, Json, Output, Quiet, Set

if TYPE_CHECKING:
    from hetero.evaluate import Scores


def align(
    query: Annotated[Path, typer.Argument(help="Any bundle: the model to bring over.")],
    gallery: Annotated[Path, typer.Argument(help="Bundle of the gallery model.")],
    data: Data = "",
    output: Output = Path("runs/aligned"),
    map: Annotated[
        str,
        typer.Option(
            help="procrustes, affine, residual_mlp, whiten, a dotted path of your own, or auto: "
            "the best of them on validation classes."
        ),
    ] = "procrustes",
    set_: Set = None,
    views: Annotated[
        int, typer.Option(min=0, help="Augmented views to learn from, besides the plain pictures.")
    ] = 1,
    seed: Annotated[int, typer.Option(help="Of the views, and of maps that are trained.")] = 0,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Bring a trained model into a gallery bundle's space by a map; no encoder is trained."""
    from hetero.stages import aligning, embedding

    parent = load_bundle(gallery, "gallery")
    done = aligning.align(
        load_bundle(query),
        parent,
        embedding.load_images(data, parent),
        output,
        aligning.AlignOptions(map, settings(set_), views, seed),
        reporter(quiet),
    )
    rows = (
        ("before, as if in the space", done.before, "the vectors differ in length"),
        ("after", done.after, ""),
        ("query model on both sides", done.both_sides, "no task without labels"),
        ("gallery model on both sides", done.paragon, "no task without labels"),
    )
    value = {
        "bundle": str(done.bundle.root),
        "space": done.bundle.space.id,
        "map": done.map,
        "folded": done.folded,
        "pairs": done.pairs,
        "fit_s": done.fit_s,
        "before": _numbers(done.before),
        "after": _numbers(done.after),
        "both_sides": _numbers(done.both_sides),
        "paragon": _numbers(done.paragon),
    }
    cost = "folded into the model at no cost" if done.folded else "one module more in the model"
    lines = [
        f"query bundle {done.bundle.root}: space {done.bundle.space.id}",
        f"map {done.map}: fitted to {done.pairs:,} pairs in {done.fit_s:.2f} s, {cost}",
        f"{'validation':<29}Recall@1     mAP",
        *(f"  {name:<27}{_row(score, why)}" for name, score, why in rows),
    ]
    say(json_, value, "\n".join(lines))


def _numbers(score: Scores | None) -> dict[str, float] | None:
    return None if score is None else brief(score)


def _row(score: Scores | None, why: str) -> str:
    return f"   {why}" if score is None else brief_row(score)
