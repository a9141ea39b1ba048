"""What is done with a bundle: export model files, look inside."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hetero.cli._helpers import load_bundle, reporter, say
from hetero.cli._options import Data, Formats, Json, Precisions, Quiet, Resume
from hetero.errors import need


def export(
    bundle: Annotated[Path, typer.Argument(help="Any bundle.")],
    format: Formats = None,
    precision: Precisions = None,
    data: Data = "",
    gallery: Annotated[
        Path | None,
        typer.Option(help="Bundle of the gallery model: int8 keeps search in its index whole."),
    ] = None,
    most_lost: Annotated[
        float, typer.Option(help="Recall@1 that int8 may lose there, as a share.")
    ] = 0.005,
    most_flips: Annotated[
        float, typer.Option(help="Share of queries that int8 may turn from right to wrong.")
    ] = 0.01,
    no_bake: Annotated[
        bool, typer.Option("--no-bake", help="Leave preprocessing outside: float32 NCHW in.")
    ] = False,
    batch: Annotated[
        int | None, typer.Option(help="Fixed batch; without it any number where possible.")
    ] = None,
    whole: Annotated[
        bool,
        typer.Option("--whole", help="Also ONNX files that take a picture of any size."),
    ] = False,
    resume: Resume = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write model files into a bundle; done only when they agree with PyTorch on the probe."""
    from hetero import export as formats
    from hetero.stages import embedding, exporting

    made = load_bundle(bundle)
    precisions = precision or list(formats.PRECISIONS)
    wanted = format or list(formats.formats())
    need("train", *(str(formats.module(name).EXTRA) for name in wanted))
    done = exporting.export_all(
        made,
        wanted,
        precisions,
        images=embedding.load_images(data, made) if "int8" in precisions else None,
        gallery=load_bundle(gallery, "gallery") if gallery else None,
        most_lost=most_lost,
        most_flips=most_flips,
        bake=not no_bake,
        batch=batch,
        resume=resume,
        reporter=reporter(quiet),
        whole=whole,
    )
    lines = [
        f"{done.path(f)}: {f.size_bytes / 2**20:.2f} MiB, worst cosine to PyTorch "
        f"{f.facts.get('cosine_worst', float('nan')):.6f}"
        for f in done.exported()
    ]
    say(json_, {"files": [f.model_dump(mode="json") for f in done.exported()]}, "\n".join(lines))


def inspect(
    path: Annotated[
        Path, typer.Argument(help="A bundle, a model file, embeddings, or a report folder.")
    ],
    json_: Json = False,
) -> None:
    """Show what a bundle or file is: space, role, hashes, metadata; every hash is checked."""
    from hetero.stages import inspecting

    value = inspecting.inspect(path)
    say(json_, value, "\n".join(f"{k}: {v}" for k, v in value.items()))
