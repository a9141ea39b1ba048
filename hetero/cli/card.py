"""A bundle's model card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hetero.cli._helpers import load_bundle, say
from hetero.cli._options import Json


def card(
    bundle: Annotated[Path, typer.Argument(help="Any bundle.")],
    report: Annotated[
        Path | None, typer.Option(help="Folder of a `hetero check` of this bundle.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file.")] = Path("README.md"),
    license: Annotated[
        str, typer.Option(help="Yours to give, as the Hub names it: apache-2.0, other, ...")
    ] = "",
    name: Annotated[str, typer.Option(help="Of the model; else the folder's.")] = "",
    json_: Json = False,
) -> None:
    """Write a model card: Markdown with Hugging Face metadata, from manifest and report."""
    from hetero._files import write_atomically
    from hetero.render import card as renderer
    from hetero.report import Report

    made = load_bundle(bundle, "any")
    told = Report.load(report / "report.json") if report is not None else None
    text = renderer.render(made, told, name or made.root.resolve().name, license)
    write_atomically(output, text)
    say(json_, {"card": str(output)}, f"model card: {output}")
