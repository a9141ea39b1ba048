"""The command line: ``hetero COMMAND``.

Results go to standard output, everything else to standard error.

Nothing heavy is imported before a command runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import errno
import json
import os
import shlex
import sys
import traceback
import warnings
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hetero.errors import ConfigError, HeteroError, StorageError

if TYPE_CHECKING:
    from hetero.bundle import Bundle
    from hetero.progress import Reporter
    from hetero.report import Report

app = typer.Typer(
    name="hetero",
    help="Edge-cloud visual search: small query models, one big gallery model, one space.\n\n"
    "Exit codes: 0 pass, 1 gate failed, 2 usage or configuration, 3 inconclusive, "
    "4 device or infrastructure, 130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
train_app = typer.Typer(
    no_args_is_help=True, help="Train a gallery model, or a query model into its space."
)
app.add_typer(train_app, name="train")


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
        "--data", "-d", help="Pictures: emoji, a folder of class folders, or a .csv/.parquet list."
    ),
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for results.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
Seed = Annotated[
    int, typer.Option(help="Of weights, order and augmentation; equal seeds repeat bit for bit.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where a stopped run was.")]
Limits = Annotated[Path | None, typer.Option(help="A limits.toml of your own.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Devices = Annotated[
    list[str] | None, typer.Option("--device", help="local, local:threads=2, ... Repeatable.")
]
Formats = Annotated[
    list[str] | None, typer.Option("--format", "-f", help="onnx, tflite, coreml. Repeatable.")
]
Precisions = Annotated[
    list[str] | None, typer.Option("--precision", "-p", help="fp32, fp16, int8. Repeatable.")
]
Threads = Annotated[int, typer.Option(min=1, help="Threads of the runtime on the device.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="A setting of the method, KEY=VALUE. Repeatable.")
]


def main() -> None:
    """Run the command line and exit; every error is one line and has its exit code."""
    # Threads that wait for each other spin for a moment only. Sleeping at once halves the speed of
    # small models; spinning as long as GNU OpenMP does by default halves it on a shared machine.
    os.environ.setdefault("GOMP_SPINCOUNT", "30000")
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    # What Pillow has to say of odd files is said by us, once, in the list of skipped files.
    warnings.filterwarnings("ignore", module="PIL")
    try:
        code = app(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except HeteroError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted; what was finished is saved", 130)
    except BrokenPipeError:
        # Whoever read our output has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO)
        _debug()
        _fail(f"{where}{error.strerror or error}", StorageError.exit_code if full else 2)
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error of the command-line parser
            _fail(error.format_message(), getattr(error, "exit_code", 2))
        if type(error).__name__ == "Abort":
            _fail("interrupted", 130)
        _debug()
        _fail(
            f"unexpected {type(error).__name__}: {' '.join(str(error).split())[:300]}; this is a "
            "fault of hetero: please report it, with what HETERO_DEBUG=1 prints before it",
            4,
        )


def _debug() -> None:
    if os.environ.get("HETERO_DEBUG"):
        traceback.print_exc()


def _fail(text: str, code: int) -> None:
    print(f"hetero: {' '.join(text.split())}", file=sys.stderr)
    sys.exit(code)


def _reporter(quiet: bool) -> Reporter:
    from hetero.progress import Reporter

    return Reporter(quiet)


def _command() -> str:
    return shlex.join(["hetero", *sys.argv[1:]])


def _say(as_json: bool, value: dict[str, Any], text: str) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False) if as_json else text)


def _settings(pairs: list[str] | None) -> dict[str, str]:
    out = {}
    for pair in pairs or []:
        key, sign, value = pair.partition("=")
        if not sign or not key:
            raise ConfigError(f"--set {pair!r}: write KEY=VALUE")
        out[key] = value
    return out


def _bundle(root: Path, role: str = "") -> Bundle:
    from hetero.bundle import Bundle

    bundle = Bundle.load(root)
    if role and bundle.role != role:
        raise ConfigError(f"{root}: a {bundle.role} bundle, where a {role} bundle is needed")
    return bundle


def _finish(report: Report, output: Path, as_json: bool, quiet: bool, judged: bool = True) -> None:
    """Show a report and exit with its verdict's code, or with 0 where nothing was to be judged."""
    from rich.console import Console

    from hetero.render import terminal
    from hetero.report import EXIT_CODES

    if as_json:
        print(json.dumps(report.to_json(), indent=1, ensure_ascii=False))
    else:
        terminal.show(report, Console(highlight=False))
        if not quiet:
            print(f"report: {output / 'report.html'}")
    raise typer.Exit(EXIT_CODES[report.verdict] if judged else 0)


def _show_bundle(bundle: Bundle, as_json: bool) -> None:
    m = bundle.manifest
    value = {
        "bundle": str(bundle.root),
        "role": m.role,
        "space": bundle.space.id,
        "dim": m.model.dim,
        "backbone": m.model.backbone,
        "parameters": m.model.parameters,
        "macs": m.model.macs,
        "files": [f.path for f in m.files],
    }
    text = (
        f"{m.role} bundle {bundle.root}: {m.model.backbone}, {m.model.parameters:,} parameters, "
        f"{m.model.macs / 1e6:.2f} MMAC, space {bundle.space.id}"
    )
    _say(as_json, value, text)


@app.command()
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
    from hetero import demo as chain

    report = chain.run(
        output,
        quick=quick,
        seed=seed,
        resume=resume,
        limits=limits,
        command=_command(),
        reporter=_reporter(quiet),
    )
    _finish(report, output / "check", json_, quiet)


@train_app.command("gallery")
def train_gallery_command(
    data: Data = "emoji",
    output: Output = Path("runs/gallery"),
    backbone: Annotated[
        str, typer.Option(help="resnet:width=16, timm:NAME, package.module:function")
    ] = "resnet:width=16",
    dim: Annotated[int, typer.Option(help="Length of the embedding.")] = 128,
    size: Annotated[
        int, typer.Option(help="Input side in pixels; 0 takes the backbone's own, else 32.")
    ] = 0,
    head: Annotated[str, typer.Option(help="cosine or arcface")] = "cosine",
    epochs: Annotated[int, typer.Option()] = 30,
    batch: Annotated[int, typer.Option()] = 128,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 3e-3,
    seed: Seed = 0,
    resume: Resume = False,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Train on at chance level.")
    ] = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a gallery model by classification; its weights define a new space."""
    from hetero import models
    from hetero.fit import Settings
    from hetero.preprocess import Preprocess
    from hetero.stages import embedding
    from hetero.train import GalleryRecipe, train_gallery

    if head not in ("cosine", "arcface"):
        raise ConfigError(f"--head {head!r}: there are cosine and arcface")
    known = models.pretrained_preprocess(backbone) or Preprocess(32)
    bundle = train_gallery(
        embedding.load_images(data),
        GalleryRecipe(backbone, dim, "arcface" if head == "arcface" else "cosine"),
        replace(known, size_px=size) if size else known,
        Settings(epochs=epochs, batch=batch, lr=lr, seed=seed, keep_going=keep_going),
        output,
        resume=resume,
        reporter=_reporter(quiet),
    )
    _show_bundle(bundle, json_)


@train_app.command("query")
def train_query_command(
    gallery: Annotated[Path, typer.Argument(help="Bundle of the gallery model.")],
    data: Data = "",
    output: Output = Path("runs/query"),
    backbone: Annotated[
        str, typer.Option(help="mobilenet:width=0.5, timm:NAME, package.module:function")
    ] = "mobilenet:width=0.5",
    method: Annotated[
        str, typer.Option(help="regression, bct, or a dotted path of your own.")
    ] = "regression",
    set_: Set = None,
    views: Annotated[
        int, typer.Option(min=0, help="Augmented views the gallery model embeds beforehand.")
    ] = 8,
    epochs: Annotated[int, typer.Option()] = 40,
    batch: Annotated[int, typer.Option()] = 128,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 3e-3,
    seed: Seed = 0,
    resume: Resume = False,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Train on at chance level.")
    ] = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a query model into a gallery bundle's space."""
    from hetero.fit import Settings
    from hetero.stages import embedding
    from hetero.train import QueryRecipe, train_query

    parent = _bundle(gallery, "gallery")
    bundle = train_query(
        parent,
        embedding.load_images(data, parent),
        QueryRecipe(backbone, method, _settings(set_), views),
        Settings(epochs=epochs, batch=batch, lr=lr, seed=seed, keep_going=keep_going),
        output,
        resume=resume,
        reporter=_reporter(quiet),
    )
    _show_bundle(bundle, json_)


@app.command()
def embed(
    bundle: Annotated[Path, typer.Argument(help="Any bundle.")],
    data: Data = "",
    split: Annotated[SplitName, typer.Option(help="Which pictures.")] = SplitName.all,
    output: Output = Path("embeddings.safetensors"),
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write the PyTorch vectors of a collection, stamped with their space."""
    from hetero.stages import embedding

    made = _bundle(bundle)
    images = embedding.load_images(data, made)
    chosen = None if split is SplitName.all else split.value
    vectors = embedding.embed_split(made, images, chosen, output, _reporter(quiet))  # type: ignore[arg-type]
    value = {
        "file": str(output),
        "rows": len(vectors),
        "space": vectors.space.id,
        "skipped": len(images.skipped),
    }
    _say(json_, value, f"{output}: {len(vectors)} vectors of space {vectors.space.id}")


@app.command()
def export(
    bundle: Annotated[Path, typer.Argument(help="Any bundle.")],
    format: Formats = None,
    precision: Precisions = None,
    data: Data = "",
    no_bake: Annotated[
        bool, typer.Option("--no-bake", help="Leave preprocessing outside: float32 NCHW in.")
    ] = False,
    batch: Annotated[
        int | None, typer.Option(help="Fixed batch; without it any number where possible.")
    ] = None,
    resume: Resume = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write model files into a bundle; done only when they agree with PyTorch on the probe."""
    from hetero import export as formats
    from hetero.stages import embedding, exporting

    made = _bundle(bundle)
    precisions = precision or list(formats.PRECISIONS)
    done = exporting.export_all(
        made,
        format or list(formats.formats()),
        precisions,
        images=embedding.load_images(data, made) if "int8" in precisions else None,
        bake=not no_bake,
        batch=batch,
        resume=resume,
        reporter=_reporter(quiet),
    )
    lines = [
        f"{done.path(f)}: {f.size_bytes / 2**20:.2f} MiB, worst cosine to PyTorch "
        f"{f.facts.get('cosine_worst', float('nan')):.6f}"
        for f in done.exported()
    ]
    _say(json_, {"files": [f.model_dump(mode="json") for f in done.exported()]}, "\n".join(lines))


@app.command()
def check(
    query: Annotated[Path, typer.Argument(help="Query bundle with exported files.")],
    gallery: Annotated[Path, typer.Option(help="Gallery bundle.")],
    data: Data = "",
    control: Annotated[
        Path | None,
        typer.Option(help="Bundle of an independently trained model of the query's size."),
    ] = None,
    device: Devices = None,
    format: Formats = None,
    precision: Precisions = None,
    output: Output = Path("runs/check"),
    limits: Limits = None,
    length: Annotated[Length, typer.Option(help="Of the latency measurement.")] = Length.normal,
    threads: Threads = 1,
    resume: Resume = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run the exported files on devices, search the gallery's index, and give a verdict."""
    from hetero.stages import checking, embedding, running

    candidate = _bundle(query)
    options = running.CheckOptions(
        devices=tuple(device or ["local"]),
        limits=limits,
        thorough=length.value,
        threads=threads,
        formats=tuple(format or ()),
        precisions=tuple(precision or ()),
        resume=resume,
        command=_command(),
    )
    report = checking.check(
        candidate,
        _bundle(gallery, "gallery"),
        embedding.load_images(data, candidate),
        output,
        options,
        control=_bundle(control) if control else None,
        reporter=_reporter(quiet),
    )
    _finish(report, output, json_, quiet)


@app.command()
def bench(
    bundle: Annotated[Path, typer.Argument(help="Bundle with exported files.")],
    device: Devices = None,
    format: Formats = None,
    precision: Precisions = None,
    output: Output = Path("runs/bench"),
    length: Annotated[Length, typer.Option(help="Of the measurement.")] = Length.normal,
    threads: Threads = 1,
    limits: Limits = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure load time, latency and memory of exported files on devices; every run is kept."""
    from hetero.stages import running

    options = running.CheckOptions(
        devices=tuple(device or ["local"]),
        limits=limits,
        thorough=length.value,
        threads=threads,
        formats=tuple(format or ()),
        precisions=tuple(precision or ()),
        command=_command(),
    )
    report = running.bench(_bundle(bundle), output, options, reporter=_reporter(quiet))
    _finish(report, output, json_, quiet, judged=limits is not None)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Folder with a report.json.")],
    limits: Limits = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a stored report again, judged by other limits if you like; nothing is run."""
    from hetero.stages import checking

    _finish(checking.judge_again(folder, limits), folder, json_, quiet)


@app.command()
def devices(json_: Json = False) -> None:
    """List the kinds of device, and what this machine can run."""
    from hetero import devices as kinds

    value = {"devices": list(kinds.names()), "formats": list(kinds.runnable())}
    _say(json_, value, "\n".join(f"{n}: {', '.join(kinds.runnable())}" for n in kinds.names()))


@app.command()
def doctor(
    device: Annotated[str, typer.Option(help="Which device to examine.")] = "local",
    json_: Json = False,
) -> None:
    """Examine this installation and a device, with fixes to copy."""
    from hetero import devices as kinds
    from hetero.stages import inspecting

    checks = [*inspecting.installation(), *kinds.examine(kinds.open_device(device))]
    rows = [{"check": c, "status": s, "detail": d, "fix": f} for c, s, d, f in checks]
    signs = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}
    text = "\n".join(
        f"{signs[s]} {c}: {d}" + (f"\n     fix: {f}" if f and s != "ok" else "")
        for c, s, d, f in checks
    )
    _say(json_, {"checks": rows}, text)
    if any(s == "fail" for _, s, _, _ in checks):
        raise typer.Exit(4)


@app.command()
def inspect(
    path: Annotated[
        Path, typer.Argument(help="A bundle, a model file, embeddings, or a report folder.")
    ],
    json_: Json = False,
) -> None:
    """Show what a bundle or file is: space, role, hashes, metadata; every hash is checked."""
    from hetero.stages import inspecting

    value = inspecting.inspect(path)
    _say(json_, value, "\n".join(f"{k}: {v}" for k, v in value.items()))


if __name__ == "__main__":
    main()
