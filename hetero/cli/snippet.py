"""The app's side of a model file, as source code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hetero.cli._helpers import load_bundle, say
from hetero.cli._options import Json, Output


def snippet(
    bundle: Annotated[Path, typer.Argument(help="Bundle with exported files.")],
    file: Annotated[str, typer.Option(help="Which model file, FORMAT:PRECISION.")] = "onnx:int8",
    language: Annotated[
        list[str] | None,
        typer.Option(help="python, javascript, kotlin, swift. Repeatable; all if left out."),
    ] = None,
    output: Output = Path("snippets"),
    json_: Json = False,
) -> None:
    """Write how an app has to prepare pictures for a model file, with canaries to check it by."""
    from hetero import snippets
    from hetero.stages import snippeting

    made = load_bundle(bundle)
    item = snippeting.find(made, file)
    wanted = language or list(snippets.languages())
    written = snippeting.snippet(made, item, wanted, output)
    sources = [f"{output / snippets.module(n).FILE}: {snippets.module(n).RUN}" for n in wanted]
    value = {"files": [str(p) for p in written], "passport": str(written[-1])}
    say(json_, value, "\n".join([*sources, f"{output / 'canaries'}: pictures and each step"]))
