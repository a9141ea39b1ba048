"""Devices: their kinds, one's own by name, and whether they are fit for a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from hetero.cli._helpers import reporter, say
from hetero.cli._options import InventoryFile, Json, Quiet


class _Group(TyperGroup):
    """A group whose commands are given the context that their annotation promises."""

    context_class = typer.Context


devices = typer.Typer(
    cls=_Group,
    help="Kinds of device, and your own devices by name (devices.toml).",
    pretty_exceptions_enable=False,
)

_SIGNS = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}


@devices.callback(invoke_without_command=True)
def kinds_of_device(context: typer.Context, json_: Json = False) -> None:
    """List the kinds of device, and what this machine can run; or do one of the commands below."""
    if context.invoked_subcommand is not None:
        return
    from hetero import devices as kinds

    formats = {name: list(kinds.runnable(name)) for name in kinds.names()}
    value = {"devices": list(formats), "formats": list(kinds.runnable()), "runs": formats}
    say(json_, value, "\n".join(f"{name}: {', '.join(x)}" for name, x in formats.items()))


@devices.command("list")
def list_(
    inventory: InventoryFile = None,
    discover: Annotated[
        bool, typer.Option("--discover", help="Also look for devices over adb and mDNS.")
    ] = False,
    wait_s: Annotated[
        float, typer.Option("--wait", min=0.2, max=60, help="Seconds to listen for mDNS.")
    ] = 3.0,
    json_: Json = False,
) -> None:
    """List the devices of the inventory, and with --discover those that make themselves known."""
    from hetero import devices as kinds

    known = kinds.load_inventory(inventory)
    rows = [{"name": n, **e.model_dump()} for n, e in known.entries.items()]
    lines = [
        f"{n}: {e.spec}"
        + (f"  [{', '.join(e.tags)}]" if e.tags else "")
        + (f"  {e.note}" if e.note else "")
        for n, e in known.entries.items()
    ]
    if not lines:
        lines = [f"no devices in {known.path}; run: hetero devices add NAME SPEC"]
    value: dict[str, Any] = {"inventory": str(known.path), "devices": rows}
    if discover:
        seen, failed = _discovered(wait_s)
        value |= {"discovered": seen, "failed": failed}
        have = {e.spec for e in known.entries.values()}
        for x in seen:
            lines.append(f"found by {x['how']}: {x['spec']} ({x['detail']})")
            if x["spec"] in have:
                lines.append("     is in the inventory")
            else:
                lines.append(f"     add: {x['add']}")
        lines += [f"{how}: {why}" for how, why in failed.items()]
        if not seen:
            lines.append("nothing made itself known")
    say(json_, value, "\n".join(lines))


def _discovered(wait_s: float) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """What made itself known, each with the line that adds it, and what could not be asked."""
    import shlex
    from concurrent.futures import ThreadPoolExecutor

    from hetero.devices import _discover
    from hetero.errors import MissingExtraError

    def mdns() -> tuple[list[_discover.Found], str]:
        try:
            return _discover.over_mdns(wait_s)
        except MissingExtraError as error:
            return [], str(error)

    with ThreadPoolExecutor(2) as pool:
        asked = {"adb": pool.submit(_discover.over_adb), "mdns": pool.submit(mdns)}
        answers = {how: x.result() for how, x in asked.items()}
    seen = [
        {
            **vars(x),
            "add": shlex.join(["hetero", "devices", "add", x.name, x.spec]),
        }
        for found, _ in answers.values()
        for x in found
    ]
    return seen, {how: why for how, (_, why) in answers.items() if why}


@devices.command()
def add(
    name: Annotated[str, typer.Argument(help="What it will be called.")],
    spec: Annotated[str, typer.Argument(help="KIND or KIND:ADDRESS, as in ssh:pi@garage.local.")],
    note: Annotated[str, typer.Option(help="For people.")] = "",
    tag: Annotated[list[str] | None, typer.Option(help="For --fleet-tag. Repeatable.")] = None,
    inventory: InventoryFile = None,
    json_: Json = False,
) -> None:
    """Add a device to the inventory; it is not contacted."""
    from hetero import devices as kinds
    from hetero.devices import _inventory
    from hetero.errors import ConfigError

    if name in kinds.names():
        raise ConfigError(f"{name!r} is a kind of device; choose another name")
    kinds.open_device(spec)
    path = inventory or _inventory.default_path()
    _inventory.add(path, name, spec, note=note, tags=tag or ())
    say(json_, {"inventory": str(path), "added": name}, f"{path}: {name} is {spec}")


@devices.command()
def remove(
    name: Annotated[str, typer.Argument(help="What it is called.")],
    inventory: InventoryFile = None,
    json_: Json = False,
) -> None:
    """Remove a device from the inventory."""
    from hetero.devices import _inventory

    path = inventory or _inventory.default_path()
    _inventory.remove(path, name)
    say(json_, {"inventory": str(path), "removed": name}, f"{path}: {name} is removed")


@devices.command("doctor")
def doctor_of_devices(
    names: Annotated[
        list[str] | None, typer.Argument(help="Names or specs; all of the inventory if none.")
    ] = None,
    inventory: InventoryFile = None,
    json_: Json = False,
) -> None:
    """Examine devices, all at the same time, with fixes to copy."""
    from concurrent.futures import ThreadPoolExecutor

    from hetero import devices as kinds

    known = kinds.load_inventory(inventory)
    opened = [kinds.open_device(x, known) for x in dict.fromkeys(names or known.chosen())]
    with ThreadPoolExecutor(len(opened)) as pool:
        found = dict(zip([x.name for x in opened], pool.map(kinds.examine, opened), strict=True))
    value = {"devices": {name: _rows(checks) for name, checks in found.items()}}
    text = "\n".join(f"{name}\n{_text(checks)}" for name, checks in found.items())
    say(json_, value, text)
    _exit([c for checks in found.values() for c in checks])


@devices.command()
def build(
    kind: Annotated[str, typer.Argument(help="Kind of device: qemu, browser, ...")],
    quiet: Quiet = False,
) -> None:
    """Build or fetch what a kind of device needs on this machine, once, into the user's cache."""
    from hetero import _plugins

    module = _plugins.load("hetero.devices", kind.partition(":")[0])
    make = getattr(module, "build", None)
    if make is None:
        print(f"{kind}: there is nothing to build")
        return
    made = make(reporter(quiet).line)
    print(f"{kind}: ready in {getattr(made, 'folder', made)}")


def doctor(
    device: Annotated[str, typer.Option(help="Which device to examine.")] = "local",
    inventory: InventoryFile = None,
    json_: Json = False,
) -> None:
    """Examine this installation and a device, with fixes to copy."""
    from hetero import devices as kinds
    from hetero.stages import inspecting

    opened = kinds.open_device(device, kinds.load_inventory(inventory))
    chain = "not tried; `hetero demo --quick` trains, exports, runs and checks here in minutes"
    checks = [*inspecting.installation(), *kinds.examine(opened), ("whole chain", "ok", chain, "")]
    say(json_, {"checks": _rows(checks)}, _text(checks))
    _exit(checks)


def _rows(checks: Sequence[tuple[str, str, str, str]]) -> list[dict[str, str]]:
    return [{"check": c, "status": s, "detail": d, "fix": f} for c, s, d, f in checks]


def _text(checks: Sequence[tuple[str, str, str, str]]) -> str:
    return "\n".join(
        f"{_SIGNS[s]} {c}: {d}" + (f"\n     fix: {f}" if f and s != "ok" else "")
        for c, s, d, f in checks
    )


def _exit(checks: Sequence[tuple[str, str, str, str]]) -> None:
    if any(s == "fail" for _, s, _, _ in checks):
        raise typer.Exit(4)


def chosen(
    device: list[str] | None, inventory: Path | None, *, fleet: bool = False, tag: str = ""
) -> tuple[tuple[str, ...], Any]:
    """The devices that --device, --fleet and --fleet-tag name, and the inventory they are in.

    Raises:
        ConfigError: The inventory is missing or has none.
    """
    from hetero import devices as kinds

    known = kinds.load_inventory(inventory)
    named = list(device or ())
    if fleet or tag:
        named += known.chosen(tag)
    return tuple(dict.fromkeys(named or ["local"])), known
