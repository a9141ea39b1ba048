"""What this machine and the devices can run."""

from __future__ import annotations

from typing import Annotated

import typer

from hetero.cli._helpers import say
from hetero.cli._options import Json


def devices(json_: Json = False) -> None:
    """List the kinds of device, and what this machine can run."""
    from hetero import devices as kinds

    value = {"devices": list(kinds.names()), "formats": list(kinds.runnable())}
    say(json_, value, "\n".join(f"{n}: {', '.join(kinds.runnable())}" for n in kinds.names()))


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
    say(json_, {"checks": rows}, text)
    if any(s == "fail" for _, s, _, _ in checks):
        raise typer.Exit(4)
