"""Why a device's vectors differ from the server's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hetero.cli._helpers import command_line, load_bundle, reporter
from hetero.cli._options import Data, InventoryFile, Json, Output, Quiet


def diagnose(
    bundle: Annotated[Path, typer.Argument(help="Bundle of the model that the device runs.")],
    gallery: Annotated[
        Path | None, typer.Option(help="Gallery bundle; needed to count lost recall.")
    ] = None,
    file: Annotated[
        str, typer.Option(help="The bundle's file that the device runs: onnx:int8.")
    ] = "",
    device: Annotated[
        str, typer.Option(help="Run the file there on the reference's pixels: local, ...")
    ] = "",
    trace: Annotated[
        Path | None, typer.Option(help="What an app gave for the canary pictures: a folder.")
    ] = None,
    canaries: Annotated[
        Path | None, typer.Option(help="Write the canary pictures there, and do nothing else.")
    ] = None,
    hypothesis: Annotated[
        list[str] | None,
        typer.Option(help="Dotted path of a hypothesis of your own. Repeatable."),
    ] = None,
    inventory: InventoryFile = None,
    data: Data = "",
    output: Output = Path("runs/diagnose"),
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Name the stage that moved a device's vectors: cause, evidence, fix, recall lost by stage."""
    from hetero import diagnose as measuring
    from hetero.devices import load_inventory
    from hetero.errors import ConfigError
    from hetero.stages import diagnosing, embedding

    query = load_bundle(bundle)
    if canaries is not None:
        pictures = diagnosing.canaries_of(query)
        measuring.write(pictures, canaries)
        print(f"{canaries}: {len(pictures)} pictures; embed them all, see docs/diagnose.md")
        return
    if gallery is None:
        raise ConfigError(
            "name the gallery bundle with --gallery, to count the recall that is lost"
        )
    options = diagnosing.DiagnoseOptions(
        file=file,
        device=device,
        inventory=load_inventory(inventory),
        trace=trace,
        more=tuple(hypothesis or ()),
        command=command_line(),
    )
    found = diagnosing.diagnose(
        query,
        load_bundle(gallery, "gallery"),
        output,
        options,
        images=embedding.load_images(data, query) if data else None,
        reporter=reporter(quiet),
    )
    if json_:
        import json

        print(json.dumps(found.to_json(), indent=1, ensure_ascii=False))
    else:
        _show(found)
        if not quiet:
            print(f"diagnosis: {output / 'diagnosis.md'}")
    raise typer.Exit(measuring.EXIT_CODES[found.verdict])


def _show(found: object) -> None:
    """Cause, evidence and fix a line each, and the table of stages."""
    from rich.console import Console
    from rich.table import Table

    from hetero.diagnose import Diagnosis, words

    assert isinstance(found, Diagnosis), "a diagnosis is shown"
    console = Console(highlight=False)
    for line in words.as_lines(found):
        console.print(line, markup=False, soft_wrap=True)
    shown = Table("stage", "1 - cosine", "recall@1 lost, points", "how")
    for row in words.table(found):
        shown.add_row(*row)
    console.print(shown)
