"""Architecture search: a query model within a budget, and latency tables of devices."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hetero.cli._helpers import (
    load_bundle,
    method_for,
    one_of,
    planned,
    reporter,
    say,
    settings,
    show_bundle,
)
from hetero.cli._options import (
    Batch,
    Data,
    DryRun,
    Json,
    KeepGoing,
    Output,
    Quiet,
    Rate,
    Resume,
    Seed,
    Set,
)
from hetero.errors import ConfigError, need

if TYPE_CHECKING:
    from hetero.data import Images
    from hetero.stages.estimating import Estimate

nas = typer.Typer(no_args_is_help=True, help="What architecture search needs from devices.")

#: Share of a budget below which cheaper is not better.
LEAST = 0.5

Space = Annotated[
    str, typer.Option(help="elastic, shufflenet:width=0.25, or a dotted path of your own.")
]


def search(
    gallery: Annotated[Path, typer.Argument(help="Bundle of the gallery model.")],
    data: Data = "",
    output: Output = Path("runs/search"),
    space: Space = "elastic",
    max_macs: Annotated[str, typer.Option(help="Multiply-accumulates: 800k, 5M.")] = "",
    max_parameters: Annotated[str, typer.Option(help="Numbers: 60k, 1M.")] = "",
    max_size: Annotated[str, typer.Option(help="Bytes of int8 weights: 60k, 1M.")] = "",
    max_latency_ms: Annotated[float, typer.Option(help="By --table.")] = 0.0,
    table: Annotated[
        Path | None, typer.Option(help="Latency table of a device, by `hetero nas measure`.")
    ] = None,
    method: Annotated[str, typer.Option(help="See `hetero train query`.")] = "auto",
    set_: Set = None,
    sampling: Annotated[str, typer.Option(help="sandwich or single")] = "sandwich",
    views: Annotated[int, typer.Option(min=0, help="Stored views.")] = 8,
    epochs: Annotated[int, typer.Option(help="Of the supernet.")] = 12,
    trials: Annotated[int, typer.Option(min=1, help="Architectures to look at.")] = 100,
    reward: Annotated[str, typer.Option(help="r1, r2 or r3")] = "r3",
    probes: Annotated[
        int, typer.Option(min=0, help="Trained on their own, to judge the supernet; 0: not judged.")
    ] = 3,
    finalists: Annotated[
        int, typer.Option(min=1, help="Best candidates trained on their own, to choose from.")
    ] = 1,
    tries: Annotated[
        int,
        typer.Option(
            min=0, help="Candidates trained briefly first, to choose finalists from; 0: none."
        ),
    ] = 0,
    try_epochs: Annotated[int, typer.Option(min=1, help="Of such a try.")] = 3,
    own_epochs: Annotated[
        int, typer.Option(min=0, help="Of a finalist's own training; 0 keeps inherited weights.")
    ] = 40,
    start: Annotated[
        str, typer.Option(help="Of that training: from inherited weights, or from scratch.")
    ] = "inherited",
    batch: Batch = 128,
    lr: Rate = 1e-2,
    seed: Seed = 0,
    resume: Resume = False,
    keep_going: KeepGoing = False,
    dry_run: DryRun = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Search the query architecture that fits a gallery model, within a budget."""
    need("train", "nas")
    from hetero.fit import Settings
    from hetero.nas import Budget, Sampling, Which, load_space
    from hetero.stages import embedding, searching
    from hetero.train import SupernetRecipe

    asked = {
        "macs": max_macs,
        "parameters": max_parameters,
        "size": max_size,
        f"latency:{table}": str(max_latency_ms) if max_latency_ms else "",
    }
    given = {name: value for name, value in asked.items() if value}
    if len(given) != 1 or (max_latency_ms and table is None):
        raise ConfigError(
            "search: give one budget: --max-macs, --max-parameters, --max-size, or "
            "--max-latency-ms with --table"
        )
    ((cost, most),) = given.items()
    which = one_of("--reward", reward, Which)
    begin = one_of("--start", start, searching.Start)
    steps = one_of("--sampling", sampling, Sampling)
    limit = number(most)
    budget = Budget(cost, limit, LEAST * limit)
    load_space(space)
    parent = load_bundle(gallery, "gallery")
    images = embedding.load_images(data, parent)
    if dry_run:
        planned(_plan(images, space, epochs, trials, probes + finalists, own_epochs), json_)
        return
    told = reporter(quiet)
    method = method_for(method, images, told)
    outcome = searching.search(
        parent,
        images,
        SupernetRecipe(space, steps, method, settings(set_), views),
        Settings(epochs=epochs, batch=batch, lr=lr, seed=seed, keep_going=keep_going),
        budget,
        searching.SearchOptions(
            trials,
            which,
            probes,
            finalists=finalists,
            tries=tries,
            try_epochs=try_epochs,
            epochs=own_epochs,
            start=begin,
            lr=lr,
        ),
        output,
        resume=resume,
        reporter=told,
    )
    show_bundle(outcome.bundle, json_)


def _plan(
    images: Images, space: str, epochs: int, trials: int, trained: int, own_epochs: int
) -> Estimate:
    """What a search would do; how long depends on what it finds."""
    from hetero.stages.estimating import Estimate

    facts = {
        "pictures": f"{len(images.rows('train')):,} to train on, "
        f"{len(images.rows('val')):,} to judge by",
        "supernet": f"{space}, {epochs} epochs",
        "architectures": f"{trials} looked at with inherited weights",
        "models": f"{trained} trained on their own, the finalists {own_epochs} epochs",
    }
    why = "what a step of the supernet and of the architectures it finds costs"
    return Estimate("search an architecture", facts, {"search": None}, None, why)


def number(text: str) -> float:
    """The number that a person writes: 800k, 5M, 0.25.

    Raises:
        ConfigError: It is none.
    """
    factors = {"k": 1e3, "m": 1e6, "g": 1e9}
    last = text[-1:].lower()
    try:
        return float(text[:-1]) * factors[last] if last in factors else float(text)
    except ValueError:
        raise ConfigError(f"{text!r} is not a number such as 800k, 5M or 0.25") from None


@nas.command()
def measure(
    gallery: Annotated[Path, typer.Argument(help="Bundle of the gallery model.")],
    data: Data = "",
    output: Output = Path("runs/measure"),
    space: Space = "elastic",
    device: Annotated[
        str, typer.Option(help="local, ssh:..., ...; not an emulated one.")
    ] = "local",
    format: Annotated[str, typer.Option("--format", "-f", help="onnx or tflite")] = "tflite",
    precision: Annotated[str, typer.Option("--precision", "-p", help="fp32, int8, ...")] = "int8",
    count: Annotated[int, typer.Option(min=2, help="Architectures the table is fitted to.")] = 40,
    held_out: Annotated[int, typer.Option(min=1, help="Others it is judged by.")] = 10,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    seed: Annotated[int, typer.Option(help="Of the architectures.")] = 0,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure a space's operators on a device: the table for `hetero search --max-latency-ms`."""
    from hetero.stages import embedding, measuring

    parent = load_bundle(gallery, "gallery")
    table = measuring.measure(
        parent,
        embedding.load_images(data, parent),
        space,
        measuring.MeasureOptions(device, format, precision, count, held_out, threads, seed),
        output,
        reporter=reporter(quiet),
    )
    text = "\n".join([f"{output / 'table.csv'}", *(f"{k}: {v}" for k, v in table.about.items())])
    say(json_, {"table": str(output / "table.csv"), "about": dict(table.about)}, text)
