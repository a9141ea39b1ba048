"""Linearised fine-tuning: a backbone learns classes, and what it learnt can be taken back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hetero.cli._helpers import load_bundle, one_of, reporter, say, show_bundle
from hetero.cli._options import Batch, Data, Formats, Json, Output, Quiet, Resume, Seed
from hetero.errors import ConfigError, need

app = typer.Typer(
    no_args_is_help=True,
    help="Adapt a bundle's backbone to classes, linearly: adaptations add, subtract, export.",
)

Bundle = Annotated[Path, typer.Argument(help="Bundle whose backbone is linearised.")]
Classes = Annotated[
    str, typer.Option(help="Of these classes alone: a,b,c. Without it all of the collection's.")
]
File = Annotated[Path, typer.Option("--output", "-o", help="The adaptation's file.")]


@app.command()
def leaky(
    bundle: Annotated[Path, typer.Argument(help="Bundle of a gallery model with ReLUs.")],
    data: Data = "",
    output: Output = Path("runs/leaky"),
    views: Annotated[int, typer.Option(min=0, help="Stored augmented views.")] = 4,
    epochs: Annotated[int, typer.Option()] = 5,
    batch: Batch = 128,
    lr: Annotated[
        float, typer.Option(help="Peak learning rate; small, as little is to be made good.")
    ] = 3e-4,
    seed: Seed = 0,
    resume: Resume = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Turn a bundle's ReLUs leaky and train it back to its own vectors; no labels needed."""
    from hetero.fit import Settings
    from hetero.stages import adapting, embedding

    made = load_bundle(bundle)
    done = adapting.leaky(
        made,
        embedding.load_images(data, made),
        Settings(epochs=epochs, batch=batch, lr=lr, seed=seed),
        output,
        views=views,
        resume=resume,
        reporter=reporter(quiet),
    )
    show_bundle(done, json_)


@app.command()
def train(
    bundle: Bundle,
    data: Data = "",
    output: File = Path("adaptation.safetensors"),
    classes: Classes = "",
    base: Annotated[
        Path | None,
        typer.Option(help="An adaptation with whose base this one shall be added or subtracted."),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(help="An adaptation to go on from, as after a customer's data was removed."),
    ] = None,
    epochs: Annotated[int, typer.Option()] = 20,
    batch: Batch = 64,
    lr: Annotated[
        float, typer.Option(help="kfac: share of the step that is best on a batch. adam: its rate.")
    ] = 1.0,
    optimizer: Annotated[str, typer.Option(help="kfac or adam")] = "kfac",
    alpha: Annotated[float, typer.Option(help="What one-hot labels are multiplied by.")] = 15.0,
    pull: Annotated[float, typer.Option(help="Weight of the pull to the base.")] = 1e-2,
    seed: Annotated[int, typer.Option(help="Of the order of pictures.")] = 0,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train the linearised model of a bundle's backbone on classes; writes an adaptation."""
    from dataclasses import asdict

    need("train", *(["lqf"] if optimizer == "kfac" else []))
    from hetero import lqf
    from hetero.stages import adapting, embedding

    if base is not None and start is not None:
        raise ConfigError("--base and --start: give one; --start brings its base along")
    made = load_bundle(bundle)
    given = start or base
    before = lqf.Adaptation.load(given) if given else None
    images = embedding.load_images(data, made)
    settings = lqf.Settings(
        epochs=epochs,
        batch=batch,
        lr=lr,
        alpha=alpha,
        pull=pull,
        optimizer=one_of("--optimizer", optimizer, lqf.Optimizer),
        seed=seed,
    )
    done = adapting.train(
        made,
        images,
        adapting.chosen(images, classes),
        settings,
        output,
        base=before,
        go_on=start is not None,
        reporter=reporter(quiet),
    )
    text = (
        f"adaptation {done.path}: {done.classes} classes, {done.pictures:,} pictures\n"
        f"held out, {done.held_out:,} pictures: {100 * done.start:.1f} % right before, "
        f"{100 * done.accuracy:.1f} % after"
    )
    say(json_, {**asdict(done), "path": str(done.path)}, text)


@app.command()
def combine(
    bundle: Bundle,
    parts: Annotated[
        list[str], typer.Argument(help="FILE:SHARE, such as all.safetensors:+1 one.safetensors:-1")
    ],
    output: File = Path("combined.safetensors"),
    json_: Json = False,
) -> None:
    """Add, subtract or average adaptations of one base: the outputs do the same, exactly."""
    from hetero.stages import adapting

    made = adapting.combine(load_bundle(bundle), [_part(text) for text in parts], output)
    value = {
        "adaptation": str(output),
        "base": made.base,
        "classes": list(made.classes),
        "recipe": dict(made.recipe),
    }
    say(json_, value, f"adaptation {output}: {len(parts)} parts, base {made.base[:12]}…")


@app.command()
def score(
    bundle: Bundle,
    adaptation: Annotated[Path, typer.Argument(help="An adaptation of it.")],
    data: Data = "",
    json_: Json = False,
) -> None:
    """Name the pictures of a collection that training holds out, and count those named rightly."""
    from hetero import lqf
    from hetero.stages import adapting, embedding

    made = load_bundle(bundle)
    images = embedding.load_images(data, made)
    right, count = adapting.score(made, lqf.Adaptation.load(adaptation), images)
    value = {"adaptation": str(adaptation), "accuracy": right, "held_out": count}
    say(json_, value, f"{adaptation}: {100 * right:.1f} % of {count:,} held-out pictures")


@app.command()
def export(
    bundle: Bundle,
    adaptation: Annotated[Path, typer.Argument(help="An adaptation of it.")],
    format: Formats = None,
    output: Output = Path("runs/linear"),
    no_bake: Annotated[
        bool, typer.Option("--no-bake", help="Leave preprocessing outside: float32 NCHW in.")
    ] = False,
    batch: Annotated[
        int | None, typer.Option(help="Fixed batch; without it any number where possible.")
    ] = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a linearised model as an ordinary graph; done only when it equals the JVP to 1e-4."""
    from hetero import export as formats
    from hetero.stages import adapting

    done = adapting.export(
        load_bundle(bundle),
        adaptation,
        format or list(formats.formats()),
        output,
        bake=not no_bake,
        batch=batch,
        reporter=reporter(quiet),
    )
    lines = [
        f"{output / f.path}: {f.size_bytes / 2**20:.2f} MiB, within "
        f"{float(f.facts['max_abs_diff']):.2g} of the JVP"
        for f in done
    ]
    say(json_, {"files": [f.model_dump(mode="json") for f in done]}, "\n".join(lines))


def _part(text: str) -> tuple[Path, float]:
    """A file and its share, +1 where none is given.

    Raises:
        ConfigError: What stands behind the last colon is no number.
    """
    path, sign, share = text.rpartition(":")
    if not sign:
        return Path(text), 1.0
    try:
        return Path(path), float(share)
    except ValueError:
        raise ConfigError(
            f"{text!r}: write FILE:SHARE with a number for a share, such as {path}:-1"
        ) from None
