"""What the commands share: reading arguments, printing results, exiting with a verdict."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_args

import typer

from hetero.errors import ConfigError

if TYPE_CHECKING:
    from hetero.bundle import Bundle
    from hetero.data import Images
    from hetero.evaluate import Scores
    from hetero.preprocess import Preprocess
    from hetero.progress import Reporter
    from hetero.report import Report
    from hetero.stages.estimating import Estimate
    from hetero.verdict import Decided


def reporter(quiet: bool) -> Reporter:
    """What shows progress on standard error, or nothing."""
    from hetero.progress import Reporter

    return Reporter(quiet)


def command_line() -> str:
    """The command as it was typed, for the record."""
    return shlex.join(["hetero", *sys.argv[1:]])


def say(as_json: bool, value: dict[str, Any], text: str) -> None:
    """Print a result on standard output, as JSON or as text."""
    print(json.dumps(value, indent=1, ensure_ascii=False) if as_json else text)


def settings(pairs: list[str] | None) -> dict[str, str]:
    """What ``--set KEY=VALUE`` says, as a dictionary.

    Raises:
        ConfigError: A pair without a key or without "=".
    """
    out = {}
    for pair in pairs or []:
        key, sign, value = pair.partition("=")
        if not sign or not key:
            raise ConfigError(f"--set {pair!r}: write KEY=VALUE")
        out[key] = value
    return out


def one_of(option: str, value: str, kinds: Any) -> Any:
    """The value, if it is among those of a `Literal`.

    Raises:
        ConfigError: It is not; the message names the option and what there is.
    """
    there = get_args(kinds)
    if value not in there:
        raise ConfigError(f"{option} {value!r}: there are {', '.join(there)}")
    return value


def precision(name: str) -> Any:
    """What ``--mixed-precision`` says, as `hetero.fit.Settings` has it.

    Raises:
        ConfigError: There is no such precision.
    """
    from hetero._mixed import Mixed

    return one_of("--mixed-precision", name, Mixed)


def numbers(option: str, text: str, example: str) -> tuple[float, ...]:
    """Numbers between commas.

    Raises:
        ConfigError: Something else is between them.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{option} {text!r}: write numbers, such as {example}") from None


def preprocess_for(backbone: str, size_px: int) -> Preprocess:
    """A backbone's own preparation of pictures, else 32 px; with `size_px` at that input size."""
    from hetero import models
    from hetero.preprocess import Preprocess

    known = models.pretrained_preprocess(backbone) or Preprocess(32)
    return replace(known, size_px=size_px) if size_px else known


def brief(found: Scores) -> dict[str, float]:
    """Recall@1 and mAP as JSON values."""
    return {"recall_at_1": found.recall_at_1.value, "map": found.map.value}


def brief_row(found: Scores) -> str:
    """The same for people, below the title "Recall@1     mAP"."""
    return f"{found.recall_at_1.value:8.3f}{found.map.value:8.3f}"


def method_for(name: str, images: Images, reporter: Reporter) -> str:
    """The method's name; for ``auto`` the one that suits these pictures, with its reason said."""
    from hetero import methods

    if name != "auto":
        return name
    choice = methods.choose(len(images.rows("train")))
    reporter.line(f"method {choice.method}: {choice.reason}")
    return choice.method


def load_bundle(root: Path, role: str = "") -> Bundle:
    """The bundle in a folder, of this role where one is asked for.

    Args:
        root: The folder.
        role: "gallery", "query" or "classifier"; "" for either of the two that embed, "any" for
            all.

    Raises:
        BundleError: See `hetero.bundle.Bundle.load`.
        ConfigError: It has another role.
    """
    from hetero.bundle import Bundle

    bundle = Bundle.load(root)
    if not role and bundle.role == "classifier":
        raise ConfigError(
            f"{root}: a classifier, which embeds nothing; `hetero pct`, `hetero export`, "
            "`hetero bench` and `hetero inspect` take one"
        )
    if role not in ("", "any", bundle.role):
        raise ConfigError(f"{root}: a {bundle.role} bundle, where a {role} bundle is needed")
    return bundle


def finish(
    report: Report,
    output: Path,
    as_json: bool,
    quiet: bool,
    judged: bool = True,
    github: bool | None = None,
) -> None:
    """Show a report and exit with its verdict's code, or with 0 where nothing was to be judged.

    Args:
        report: Judged or not.
        output: Its folder.
        as_json: On standard output, instead of a table.
        quiet: Do not say where it is.
        judged: Whether the verdict is the exit code.
        github: Tell GitHub Actions; None where this runs there.
    """
    from rich.console import Console

    from hetero.render import github as service
    from hetero.render import terminal

    if as_json:
        print(json.dumps(report.to_json(), indent=1, ensure_ascii=False))
    else:
        terminal.show(report, Console(highlight=False))
        if not quiet:
            print(f"report: {output / 'report.html'}")
    if judged and (service.runs_here(os.environ) if github is None else github):
        sys.stderr.write(service.render(report))
        service.tell(report, output, os.environ)
    raise typer.Exit(report.exit_code if judged else 0)


def leave(outcome: Decided) -> NoReturn:
    """Exit with a verdict's code."""
    from hetero.report import EXIT_CODES

    raise typer.Exit(EXIT_CODES[outcome])


def planned(estimate: Estimate, as_json: bool) -> None:
    """Print what a job would take, instead of doing it."""
    say(as_json, estimate.to_json(), "\n".join(estimate.lines()))


def show_bundle(bundle: Bundle, as_json: bool) -> None:
    """Print what a finished bundle is."""
    say(as_json, _facts(bundle), _line(bundle))


def show_bundles(bundles: Sequence[Bundle], as_json: bool) -> None:
    """Print what several finished bundles are."""
    value = {"bundles": [_facts(b) for b in bundles]}
    say(as_json, value, "\n".join(_line(b) for b in bundles))


def _facts(bundle: Bundle) -> dict[str, Any]:
    m = bundle.manifest
    return {
        "bundle": str(bundle.root),
        "role": m.role,
        "space": bundle.space.id,
        "dim": m.model.dim,
        "backbone": m.model.backbone,
        "parameters": m.model.parameters,
        "macs": m.model.macs,
        "files": [f.path for f in m.files],
    }


def _line(bundle: Bundle) -> str:
    m = bundle.manifest
    return (
        f"{m.role} bundle {bundle.root}: {m.model.backbone}, {m.model.parameters:,} parameters, "
        f"{m.model.macs / 1e6:.2f} MMAC, space {bundle.space.id}"
    )
