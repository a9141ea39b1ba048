"""The options that several commands share, each with its help."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Length(StrEnum):
    """How long to measure latency."""

    quick = "quick"
    normal = "normal"
    long = "long"


class SplitName(StrEnum):
    """Which pictures of a collection."""

    train = "train"
    val = "val"
    test = "test"
    all = "all"


Data = Annotated[
    str,
    typer.Option(
        "--data",
        "-d",
        help="Pictures: emoji, a folder of class folders, a .csv/.parquet list, .tar shards.",
    ),
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for results.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
Seed = Annotated[
    int, typer.Option(help="Of weights, order and augmentation; equal seeds repeat bit for bit.")
]
Size = Annotated[
    int, typer.Option(help="Input side in pixels; 0 takes the backbone's own, else 32.")
]
Rate = Annotated[float, typer.Option("--lr", help="Peak learning rate.")]
Batch = Annotated[int, typer.Option(help="Pictures a step.")]
Mixed = Annotated[
    str,
    typer.Option("--mixed-precision", help="no, bf16 or fp16: what backbones are trained in."),
]
Shard = Annotated[
    bool,
    typer.Option("--shard-model", help="Cut a large model over torchrun's processes (FSDP2)."),
]
KeepGoing = Annotated[bool, typer.Option("--keep-going", help="Train on at chance level.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where a stopped run was.")]
Limits = Annotated[Path | None, typer.Option(help="A limits.toml of your own.")]
Baseline = Annotated[
    Path | None,
    typer.Option(help="An earlier run, folder or report.json: fail if this one is worse."),
]
GitHub = Annotated[
    bool | None,
    typer.Option(
        "--github/--no-github",
        help="Annotations and step summary; on by itself in GitHub Actions.",
        show_default=False,
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Devices = Annotated[
    list[str] | None,
    typer.Option("--device", help="A name of the inventory, or local:threads=2, ... Repeatable."),
]
InventoryFile = Annotated[
    Path | None,
    typer.Option("--inventory", help="A devices.toml; else ./devices.toml, else the user's."),
]
Formats = Annotated[
    list[str] | None, typer.Option("--format", "-f", help="onnx, tflite, coreml. Repeatable.")
]
Precisions = Annotated[
    list[str] | None,
    typer.Option(
        "--precision", "-p", help="fp32, fp16, int8, int8w; palette6 (Core ML). Repeatable."
    ),
]
Threads = Annotated[int, typer.Option(min=1, help="Threads of the runtime on the device.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="A setting of the method or map, KEY=VALUE.")
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Read and check the inputs, say what it takes; write nothing."),
]
