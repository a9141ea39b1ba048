"""A pretrained model made a gallery model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from hetero.cli._helpers import load_bundle, reporter, show_bundle
from hetero.cli._options import Data, Json, Output, Quiet
from hetero.errors import ConfigError


def adopt(
    backbone: Annotated[
        str,
        typer.Argument(
            help="A backbone with weights of its own: timm:NAME,pretrained=1 or "
            "package.module:function."
        ),
    ],
    data: Data = "",
    output: Output = Path("runs/gallery"),
    dim: Annotated[int, typer.Option(help="Principal axes kept: length of the embedding.")] = 128,
    size: Annotated[
        int, typer.Option(help="Input side in pixels; 0 takes the backbone's own.")
    ] = 0,
    like: Annotated[
        Path | None, typer.Option(help="Take the preprocessing of this bundle.")
    ] = None,
    mean: Annotated[
        str, typer.Option(help="Mean of each channel in 0..1, such as 0.485,0.456,0.406.")
    ] = "",
    std: Annotated[str, typer.Option(help="Standard deviation of each channel.")] = "",
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a pretrained backbone a gallery model as it is: no training, no labels."""
    from hetero import models
    from hetero.preprocess import Preprocess
    from hetero.stages import embedding
    from hetero.train import adopt_gallery

    if not data:
        raise ConfigError("adopt: name the pictures that fix the axes, --data photos/")
    known = (
        load_bundle(like).preprocess if like else models.pretrained_preprocess(backbone)
    ) or Preprocess(224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    known = replace(known, size_px=size) if size else known
    if mean:
        known = replace(known, mean=_three("--mean", mean))
    if std:
        known = replace(known, std=_three("--std", std))
    bundle = adopt_gallery(
        embedding.load_images(data), backbone, dim, known, output, reporter=reporter(quiet)
    )
    show_bundle(bundle, json_)


def _three(option: str, text: str) -> tuple[float, float, float]:
    try:
        red, green, blue = (float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{option} {text!r}: write three numbers, such as 0.5,0.5,0.5") from None
    return red, green, blue
