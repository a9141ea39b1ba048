"""The whole chain in one command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hetero.cli._helpers import command_line, finish, reporter
from hetero.cli._options import Json, Limits, Output, Quiet, Resume, Seed


def demo(
    output: Output = Path("runs/demo"),
    quick: Annotated[bool, typer.Option("--quick", help="A smoke run of a minute or two.")] = False,
    seed: Seed = 0,
    resume: Resume = False,
    limits: Limits = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train, export, run and judge on the embedded pictures: the whole chain, one verdict."""
    from hetero.errors import need

    need("train", "onnx", "tflite", "coreml", "report")
    from hetero import demo as chain

    report = chain.run(
        output,
        quick=quick,
        seed=seed,
        resume=resume,
        limits=limits,
        command=command_line(),
        reporter=reporter(quiet),
    )
    finish(report, output / "check", json_, quiet)
