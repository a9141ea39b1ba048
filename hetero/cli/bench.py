"""Latency: measuring it, comparing it, and what was measured before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from hetero.cli._helpers import command_line, finish, leave, load_bundle, planned, reporter, say
from hetero.cli._options import (
    Devices,
    DryRun,
    Formats,
    InventoryFile,
    Json,
    Length,
    Limits,
    Precisions,
    Quiet,
    Resume,
    Seed,
    Threads,
)
from hetero.cli.machines import chosen
from hetero.errors import ConfigError, need

if TYPE_CHECKING:
    from hetero.bundle import Bundle
    from hetero.history import Entry, History
    from hetero.stages.contest import ContestOptions, Side

MEASURE = "run"


class _Group(TyperGroup):
    """`hetero bench BUNDLE` is `hetero bench run BUNDLE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = [MEASURE, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    help="Latency of exported files on devices.\n\n"
    "`hetero bench BUNDLE` measures; `hetero bench BUNDLE --against OTHER` compares. "
    "Exit codes: 1 a regression or a broken limit, 3 inconclusive or invalid.",
)

HistoryFile = Annotated[
    Path | None, typer.Option("--history", help="SQLite file; without, one in your data folder.")
]
Margin = Annotated[float, typer.Option(help="A slow-down up to this part is no regression.")]


@app.command(MEASURE)
def run(
    bundle: Annotated[Path, typer.Argument(help="Bundle with exported files.")],
    against: Annotated[
        Path | None,
        typer.Option(help="Bundle to compare with, in blocks that alternate; may be the same."),
    ] = None,
    baseline: Annotated[
        str, typer.Option(help="Compare with the file of this baseline, run again now.")
    ] = "",
    save: Annotated[str, typer.Option(help="Keep this measurement as a baseline.")] = "",
    device: Devices = None,
    inventory: InventoryFile = None,
    format: Formats = None,
    precision: Precisions = None,
    against_format: Annotated[str, typer.Option(help="Of the other file, if it differs.")] = "",
    against_precision: Annotated[str, typer.Option(help="Of the other file, if it differs.")] = "",
    margin: Margin = 0.05,
    sustained: Annotated[
        float, typer.Option(min=0, help="Minutes: first against last minute.", show_default=False)
    ] = 0.0,
    duty: Annotated[float, typer.Option(help="Part of the time that the model runs.")] = 1.0,
    profile: Annotated[
        bool, typer.Option("--profile", help="Time each operator too, in a run of its own.")
    ] = False,
    accelerator: Annotated[
        str, typer.Option(help="Where the runtime is to run it: coreml, nnapi, cuda, xnnpack, …")
    ] = "",
    fail_on_fallback: Annotated[
        bool, typer.Option("--fail-on-fallback", help="Fail where an operator runs elsewhere.")
    ] = False,
    tool: Annotated[
        str,
        typer.Option(
            help="Run a benchmark program of yours instead: PATH or NAME=PATH of benchmark_model, "
            "onnxruntime_perf_test, or any other with --tool-args."
        ),
    ] = "",
    tool_args: Annotated[
        str, typer.Option(help="Its arguments, with {model}, {threads}, {runs}, {seconds} in them.")
    ] = "",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for results.")] = Path(
        "runs/bench"
    ),
    length: Annotated[Length, typer.Option(help="Of the measurement.")] = Length.normal,
    threads: Threads = 1,
    seed: Seed = 0,
    limits: Limits = None,
    history: HistoryFile = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure load time, latency and memory of exported files on devices; every run is kept."""
    need("report")
    from hetero.history import History
    from hetero.stages import benching, running

    if against is not None and baseline:
        raise ConfigError("give --against or --baseline, not both")
    found, book = load_bundle(bundle, "any"), History.open(history)
    names, known = chosen(device, inventory)
    asked = running.CheckOptions(
        devices=names,
        inventory=known,
        limits=limits,
        thorough=length.value,
        threads=threads,
        formats=tuple(format or ()),
        precisions=tuple(precision or ()),
        resume=resume,
        command=command_line(),
    )
    if dry_run:
        from hetero.stages import estimating

        planned(estimating.on_devices("measure latency", found, asked), json_)
        return
    if tool or tool_args:
        if against or baseline or save or sustained or profile or accelerator or fail_on_fallback:
            raise ConfigError(
                "a program of yours measures in its own way: --tool takes no --against, "
                "--baseline, --save, --sustained, --profile, --accelerator or --fail-on-fallback"
            )
        from hetero.devices import Tool
        from hetero.stages import tooling

        program = Tool.named(tool, tool_args)
        report = tooling.bench_by_tool(found, output, asked, program, reporter=reporter(quiet))
        finish(report, output, json_, quiet, judged=limits is not None)
    if against is None and not baseline:
        options = benching.BenchOptions(
            asked, sustained, duty, profile, accelerator, fail_on_fallback
        )
        report = benching.bench(found, output, options, reporter=reporter(quiet), history=book)
        if save:
            _save(book, save, found, asked)
        finish(report, output, json_, quiet, judged=limits is not None or fail_on_fallback)
    from hetero.stages import contest

    if sustained or profile or fail_on_fallback or save or limits:
        raise ConfigError(
            "a comparison takes no --sustained, --profile, --fail-on-fallback, --save or --limits; "
            "measure with them first"
        )
    if len(asked.devices) > 1:
        raise ConfigError(f"a comparison is made on one device, got {', '.join(asked.devices)}")
    options_ = contest.ContestOptions(
        asked.devices[0],
        length.value,
        margin,
        seed,
        threads,
        accelerator,
        resume,
        command_line(),
        known,
    )
    b = _side(found, asked)
    if against is None:
        a = _side_of_baseline(book, baseline, options_)
    else:
        formats = (against_format,) if against_format else (b.load.format,)
        precisions = (against_precision,) if against_precision else (b.precision,)
        a = _side(
            load_bundle(against, "any"), replace(asked, formats=formats, precisions=precisions)
        )
    report, result = contest.contest(a, b, output, options_, reporter=reporter(quiet))
    running.publish(report, output)
    book.add(contest.entry(b, found.digest, result, report, options_))
    finish(report, output, json_, quiet)


@app.command("list")
def list_(
    device: Annotated[str, typer.Option(help="Only of this device.")] = "",
    plot: Annotated[Path | None, typer.Option(help="Write medians over time, as SVG.")] = None,
    history: HistoryFile = None,
    json_: Json = False,
) -> None:
    """List what was measured, oldest first, and the baselines."""
    from hetero.history import History

    book = History.open(history)
    runs = book.runs(**({"device": device} if device else {}))
    if plot is not None:
        from hetero._files import write_atomically
        from hetero.render.plots import over_time

        write_atomically(plot, over_time(runs))
    names = {number: name for name, number in book.baselines().items()}
    lines = [
        f"{r.id:>4}  {r.at}  {r.kind:<9} {r.subject} on {r.device} ({r.settings}): "
        f"p50 {r.p50_ns / 1e6:.3g} ms, quiet {r.quiet_ns / 1e6:.3g} ms, {r.validity}"
        + (f"  [{names[r.id]}]" if r.id in names else "")
        for r in runs
    ]
    value = {"runs": [{**vars(r), "baseline": names.get(r.id, "")} for r in runs]}
    say(json_, value, "\n".join(lines) or f"{book.path}: no runs yet")


@app.command()
def compare(
    runs: Annotated[list[int], typer.Argument(help="Numbers of two runs: A, then B.")],
    baseline: Annotated[str, typer.Option(help="Take the run of this baseline as A.")] = "",
    margin: Margin = 0.05,
    history: HistoryFile = None,
    json_: Json = False,
) -> None:
    """Compare stored numbers of two sessions; nothing is run.

    Sessions differ by themselves. How much is learned from the history; while it is not known, or
    while it hides the margin, the answer is inconclusive. `--against` and `--baseline` of
    `hetero bench BUNDLE` run both files again in one session and see far smaller differences.
    """
    from hetero.history import History, session_ratio

    book = History.open(history)
    chosen = [*([book.baseline(baseline).run] if baseline else []), *map(book.run, runs)]
    if len(chosen) != 2:
        raise ConfigError(f"compare two runs, or a run with --baseline; got {len(chosen)}")
    a, b = chosen
    found = session_ratio(a, b, book.runs(device=a.device))
    outcome = found.judged(margin, a, b)
    said = f"run {b.id} takes {found.value:.3f} times as long as run {a.id}"
    if found.low is not None and found.high is not None:
        said += f" (95 % interval {found.low:.3f} to {found.high:.3f})"
    value = {**vars(found), "a": a.id, "b": b.id, "margin": margin, "verdict": outcome}
    say(json_, value, f"{outcome.upper()}: {said}; {found.why(margin, a, b)}")
    leave(outcome)


def _one(bundle: Bundle, asked: Any) -> Any:
    from hetero.stages import benching

    files = benching.runnable(bundle, asked)
    if len(files) > 1:
        have = ", ".join(f"{f.kind} {f.precision}" for f in files)
        raise ConfigError(f"{bundle.root}: {have}; choose one with --format and --precision")
    return files[0]


def _side(bundle: Bundle, asked: Any) -> Side:
    """The one file of a bundle that is left."""
    from hetero.devices import Load
    from hetero.stages.contest import Side

    item = _one(bundle, asked)
    inputs = bundle.inputs(item, bundle.probe().pixels[:1])
    load = Load(bundle.path(item), item.kind, inputs)
    return Side(load, f"{bundle.root.name} {item.path}", item.precision, item.sha256)


def _side_of_baseline(book: History, name: str, options: ContestOptions) -> Side:
    """The stored file of a baseline, to run again."""
    from hetero.devices import Load
    from hetero.stages.contest import Side

    kept = book.baseline(name)
    if kept.run.device != options.device:
        raise ConfigError(
            f"baseline {name!r} was measured on {kept.run.device}, not on {options.device}"
        )
    load = Load(kept.model, kept.run.format, kept.inputs)
    return Side(load, f"baseline {name}", kept.run.precision, kept.run.file_sha256)


def _save(book: History, name: str, bundle: Bundle, asked: Any) -> None:
    """Keep the measurement that was just made as a baseline."""
    item = _one(bundle, asked)
    if len(asked.devices) > 1:
        raise ConfigError("a baseline is of one device")
    run: Entry = book.runs(file_sha256=item.sha256)[-1]
    book.keep(name, run, bundle.path(item), bundle.inputs(item, bundle.probe().pixels[:1]))
