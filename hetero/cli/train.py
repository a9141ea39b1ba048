"""Training: a gallery model, or a query model into its space."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hetero.cli._helpers import (
    load_bundle,
    method_for,
    numbers,
    one_of,
    planned,
    precision,
    preprocess_for,
    reporter,
    settings,
    show_bundle,
    show_bundles,
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
    Size,
)

app = typer.Typer(
    no_args_is_help=True, help="Train a gallery model, or a query model into its space."
)


@app.command()
def gallery(
    data: Data = "emoji",
    output: Output = Path("runs/gallery"),
    backbone: Annotated[
        str, typer.Option(help="resnet:width=16, timm:NAME, package.module:function")
    ] = "resnet:width=16",
    dim: Annotated[int, typer.Option(help="Length of the embedding.")] = 128,
    size: Size = 0,
    head: Annotated[str, typer.Option(help="cosine, arcface, plain or simplex")] = "cosine",
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
    """Train a gallery model by classification; its weights define a new space."""
    from hetero.fit import Settings
    from hetero.heads import Margin
    from hetero.stages import embedding, estimating
    from hetero.train import GalleryRecipe, train_gallery

    margin = one_of("--head", head, Margin)
    images, prepared = embedding.load_images(data), preprocess_for(backbone, size)
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
        planned(estimating.training(images, backbone, dim, prepared, how), json_)
        return
    bundle = train_gallery(
        images,
        GalleryRecipe(backbone, dim, margin),
        prepared,
        how,
        output,
        resume=resume,
        reporter=reporter(quiet),
    )
    show_bundle(bundle, json_)


@app.command()
def query(
    gallery: Annotated[Path, typer.Argument(help="Bundle of the gallery model.")],
    data: Data = "",
    output: Output = Path("runs/query"),
    backbone: Annotated[
        str, typer.Option(help="mobilenet:width=0.5, timm:NAME, package.module:function")
    ] = "mobilenet:width=0.5",
    method: Annotated[
        str,
        typer.Option(
            help="auto, regression, csd, d3still, ssp, raml, aml, bct, ..., several joined by +, "
            "or a dotted path of your own."
        ),
    ] = "auto",
    set_: Set = None,
    views: Annotated[
        int, typer.Option(min=0, help="Augmented views the gallery model embeds beforehand.")
    ] = 8,
    mix: Annotated[
        float, typer.Option(min=0, max=1, help="Share of views blended with another picture.")
    ] = 0.0,
    dim: Annotated[
        int,
        typer.Option(min=0, help="Numbers the device sends, lifted to the gallery's; 0: as it."),
    ] = 0,
    widths: Annotated[
        str, typer.Option(help="Several widths in one training: 0.25,0.5,1. One bundle each.")
    ] = "",
    vectors: Annotated[
        Path | None, typer.Option(help="Keep the gallery's vectors here, for other runs.")
    ] = None,
    epochs: Annotated[int, typer.Option()] = 40,
    batch: Batch = 128,
    lr: Rate = 1e-2,
    mixed: Mixed = "no",
    qat: Annotated[
        int, typer.Option(min=0, help="Epochs at the end that train it as it will run in int8.")
    ] = 0,
    seed: Seed = 0,
    resume: Resume = False,
    keep_going: KeepGoing = False,
    dry_run: DryRun = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a query model into a gallery bundle's space; labels are not needed."""
    from hetero.augment import Augment
    from hetero.fit import Settings
    from hetero.stages import embedding, estimating
    from hetero.train import QueryRecipe, train_query, train_widths

    parent = load_bundle(gallery, "gallery")
    images = embedding.load_images(data, parent)
    say = reporter(quiet)
    method = method_for(method, images, say)
    recipe = QueryRecipe(backbone, method, settings(set_), views, dim, qat)
    how = Settings(
        epochs=epochs,
        batch=batch,
        lr=lr,
        seed=seed,
        keep_going=keep_going,
        mixed_precision=precision(mixed),
        augment=Augment(mix=mix),
    )
    if dry_run:
        asked = numbers("--widths", widths, "0.25,0.5,1") if widths else (1.0,)
        planned(
            estimating.training(
                images,
                backbone,
                parent.space.dim,
                parent.preprocess,
                how,
                kind="query model",
                teacher=parent,
                views=views,
                models=len(asked),
            ),
            json_,
        )
        return
    if widths:
        made = train_widths(
            parent,
            images,
            recipe,
            numbers("--widths", widths, "0.25,0.5,1"),
            how,
            output,
            vectors=vectors,
            resume=resume,
            reporter=say,
        )
        show_bundles(made, json_)
        return
    bundle = train_query(
        parent, images, recipe, how, output, vectors=vectors, resume=resume, reporter=say
    )
    show_bundle(bundle, json_)
