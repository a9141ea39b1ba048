"""The command line: ``hetero COMMAND``.

Results go to standard output, everything else to standard error.

Nothing heavy is imported before a command runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
import warnings
from pathlib import Path

import typer

from hetero.cli import (
    adopt,
    align,
    bench,
    bundles,
    card,
    check,
    demo,
    diagnose,
    embed,
    index,
    lqf,
    machines,
    pct,
    report,
    search,
    signing,
    snippet,
    train,
    upgrade,
)
from hetero.cli._noise import aside
from hetero.errors import HeteroError, Interrupted, StorageError, missing_extra

app = typer.Typer(
    name="hetero",
    help="Edge-cloud visual search: small query models, one big gallery model, one space.\n\n"
    "Exit codes: 0 pass, 1 gate failed, 2 usage or configuration, 3 inconclusive, "
    "4 device or infrastructure, 130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    demo.demo,
    adopt.adopt,
    align.align,
    search.search,
    embed.embed,
    bundles.export,
    check.check,
    report.report,
    diagnose.diagnose,
    snippet.snippet,
    card.card,
    signing.sign,
    signing.verify,
    machines.doctor,
    bundles.inspect,
):
    app.command()(command)
app.add_typer(train.app, name="train")
app.add_typer(pct.app, name="pct")
app.add_typer(machines.devices, name="devices")
app.add_typer(bench.app, name="bench")
app.add_typer(search.nas, name="nas")
app.add_typer(upgrade.app, name="upgrade")
app.add_typer(index.app, name="index")
app.add_typer(lqf.app, name="lqf")


def main() -> None:
    """Run the command line and exit; every error is one line and has its exit code."""
    # Threads that wait for each other spin for a moment only. Sleeping at once halves the speed of
    # small models; spinning as long as GNU OpenMP does by default halves it on a shared machine.
    os.environ.setdefault("GOMP_SPINCOUNT", "30000")
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    # What Pillow has to say of odd files is said by us, once, in the list of skipped files.
    warnings.filterwarnings("ignore", module="PIL")
    with aside() as log:
        code = _run(log)
    sys.exit(code)


def _run(log: Path | None) -> int:
    """The command's exit code, whatever happened said in one line."""
    try:
        # By this name completion asks, also where it is started as `python -m hetero.cli`.
        code = app(prog_name="hetero", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except Interrupted as error:
        return _failed(str(error), error.exit_code)
    except BrokenPipeError:
        # Whoever read our output has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (KeyboardInterrupt, Exception) as error:
        if _by_ctrl_c(error):
            return _failed("interrupted; what was finished is saved", 130)
        return _said(error, log)


def _said(error: BaseException, log: Path | None) -> int:
    """The exit code of an error that is not Ctrl-C, said in one line."""
    if isinstance(error, HeteroError):
        return _failed(str(error), error.exit_code)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO)
        _debug(error)
        return _failed(f"{where}{error.strerror or error}", StorageError.exit_code if full else 2)
    if hasattr(error, "format_message"):  # a usage error of the command-line parser
        return _failed(error.format_message(), getattr(error, "exit_code", 2))
    if type(error).__name__ == "Abort":
        return _failed("interrupted", 130)
    if isinstance(error, ModuleNotFoundError) and (lacking := missing_extra(error)):
        return _failed(str(lacking), lacking.exit_code)
    _debug(error)
    said = log is not None and log.stat().st_size
    return _failed(
        f"unexpected {type(error).__name__}: {' '.join(str(error).split())[:300]}; this is a "
        "fault of hetero: please report it, with what HETERO_DEBUG=1 prints before it"
        + (f", and with {log}" if said else ""),
        4,
    )


def _by_ctrl_c(error: BaseException | None) -> bool:
    """Whether Ctrl-C is what it comes from; pydantic's error says so in words alone."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt) or "KeyboardInterrupt:" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _debug(error: BaseException) -> None:
    if os.environ.get("HETERO_DEBUG"):
        traceback.print_exception(error)


def _failed(text: str, code: int) -> int:
    print(f"hetero: {' '.join(text.split())}", file=sys.stderr)
    return code
