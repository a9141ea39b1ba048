"""Checking exported files on devices."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hetero.cli._helpers import command_line, finish, load_bundle, planned, reporter
from hetero.cli._options import (
    Baseline,
    Data,
    Devices,
    DryRun,
    Formats,
    GitHub,
    InventoryFile,
    Json,
    Length,
    Limits,
    Output,
    Precisions,
    Quiet,
    Resume,
    Threads,
)
from hetero.cli.machines import chosen
from hetero.errors import need


def check(
    query: Annotated[Path, typer.Argument(help="Query bundle with exported files.")],
    gallery: Annotated[Path, typer.Option(help="Gallery bundle.")],
    data: Data = "",
    control: Annotated[
        Path | None,
        typer.Option(help="Bundle of an independently trained model of the query's size."),
    ] = None,
    device: Devices = None,
    fleet: Annotated[bool, typer.Option("--fleet", help="Every device of the inventory.")] = False,
    fleet_tag: Annotated[
        str, typer.Option("--fleet-tag", help="Every device of the inventory with this tag.")
    ] = "",
    inventory: InventoryFile = None,
    format: Formats = None,
    precision: Precisions = None,
    output: Output = Path("runs/check"),
    limits: Limits = None,
    length: Annotated[Length, typer.Option(help="Of the latency measurement.")] = Length.normal,
    threads: Threads = 1,
    sequential: Annotated[
        bool,
        typer.Option(
            "--sequential", help="Ask devices only until every noninferiority limit is certain."
        ),
    ] = False,
    resume: Resume = False,
    baseline: Baseline = None,
    github: GitHub = None,
    dry_run: DryRun = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run the exported files on devices, search the gallery's index, and give a verdict.

    Several devices run side by side. One that cannot be reached leaves its files out: exit code 4,
    unless a limit failed on what was run: then 1.
    """
    need("train", "report")
    from hetero.stages import checking, embedding, estimating, running

    names, known = chosen(device, inventory, fleet=fleet, tag=fleet_tag)
    candidate = load_bundle(query)
    options = running.CheckOptions(
        devices=names,
        inventory=known,
        limits=limits,
        thorough=length.value,
        threads=threads,
        formats=tuple(format or ()),
        precisions=tuple(precision or ()),
        resume=resume,
        sequential=sequential,
        command=command_line(),
        baseline=baseline,
    )
    if dry_run:
        load_bundle(gallery, "gallery").space.must_match(candidate.space, f"bundle {query}")
        images = embedding.load_images(data, candidate)
        planned(estimating.on_devices("check", candidate, options, images), json_)
        return
    report = checking.check(
        candidate,
        load_bundle(gallery, "gallery"),
        embedding.load_images(data, candidate),
        output,
        options,
        control=load_bundle(control) if control else None,
        reporter=reporter(quiet),
    )
    finish(report, output, json_, quiet, github=github)
