"""Stored reports, written again or told over time."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hetero.cli._helpers import finish, reporter
from hetero.cli._options import Baseline, GitHub, Json, Limits, Quiet
from hetero.errors import ConfigError


def report(
    folder: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Folder with a report.json. With --history several, or a folder of such folders; "
            "without any, runs.",
            show_default=False,
        ),
    ] = None,
    history: Annotated[
        bool, typer.Option("--history", help="Tell the runs over time, regressions marked.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="With --history: folder for results; runs/history."),
    ] = None,
    limits: Limits = None,
    baseline: Baseline = None,
    github: GitHub = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a stored report again, judged by other limits if you like; nothing is run.

    With --history: each file's recall, loss, latency and size over several stored runs, as one
    page. Exit code 1 if the last run is worse than before, 3 if that cannot be told.
    """
    if history:
        if limits is not None or baseline is not None:
            raise ConfigError(
                "--history compares runs as they were judged; leave out --limits and --baseline"
            )
        _history(folder or [Path("runs")], output or Path("runs/history"), json_, quiet)
    if output is not None:
        raise ConfigError("a report is written again in its own folder; --output is for --history")
    if folder is None or len(folder) != 1:
        raise ConfigError(
            f"name one folder with a report.json, got {len(folder or ())}; several are for "
            "--history"
        )
    from hetero.stages import checking

    again = checking.judge_again(folder[0], limits, baseline)
    finish(again, folder[0], json_, quiet, github=github)


def _history(folders: list[Path], output: Path, as_json: bool, quiet: bool) -> None:
    import json

    from rich.console import Console

    from hetero import timeline
    from hetero.render import timeline as rendering
    from hetero.stages import reviewing

    found = reviewing.review(folders, output, reporter=reporter(quiet))
    if as_json:
        print(json.dumps(rendering.told(found), indent=1, ensure_ascii=False))
    else:
        rendering.show(found, Console(highlight=False))
        if not quiet:
            print(f"history: {output / reviewing.PAGE}")
    raise typer.Exit(timeline.exit_code(found))
