"""What a worker says it is done with: fetched, compared with what it signed, read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hetero._files import sha256
from hetero.devices import _firmware
from hetero.devices import _protocol as protocol
from hetero.devices._types import Conditions, Device, OpProfile, Plan, RunResult
from hetero.devices._way import Way
from hetero.errors import DeviceError


@dataclass
class Heard:
    """What a worker said besides its rows, gathered over a run."""

    telemetry: list[protocol.Telemetry] = field(default_factory=list)
    marks: list[tuple[float, int]] = field(default_factory=list)
    profile: protocol.Profile | None = None

    def take(self, event: protocol.Event) -> None:
        """Keep of an event what will be asked for."""
        if isinstance(event, protocol.Telemetry):
            self.telemetry.append(event)
        elif isinstance(event, protocol.Profile):
            self.profile = event
        elif isinstance(event, protocol.Bench):  # a new worker has a new clock
            self.marks = [(event.t_s, event.runs)]
        elif isinstance(event, protocol.Beat) and event.phase == "measure" and self.marks:
            self.marks.append((event.t_s, event.runs))

    @property
    def throttled(self) -> list[int]:
        """What the firmware said of power and heat, in order; empty where nobody could ask it."""
        return [x.throttled for x in self.telemetry if x.throttled is not None]

    def facts(self) -> dict[str, str]:
        """Heat, clock, load and governor: before, after, and the most heat in between."""
        heats = [max(x.temperatures_c.values()) for x in self.telemetry if x.temperatures_c]
        out = {"temperature_max_c": f"{max(heats):.1f}" if heats else ""}
        for when, at in (("before", 0), ("after", -1)):
            if self.telemetry:
                seen = self.telemetry[at]
                heat = max(seen.temperatures_c.values(), default=None)
                for name, value in (
                    ("temperature", heat),
                    ("clock", seen.clock_mhz),
                    ("load", seen.load),
                ):
                    unit = {"temperature": "_c", "clock": "_mhz", "load": ""}[name]
                    out[f"{name}_{when}{unit}"] = "" if value is None else f"{value:g}"
        return {**out, "throttled": _firmware.words(self.throttled)}


def fetch(
    way: Way,
    device: Device,
    home: Path,
    ordered: protocol.Job,
    plan: Plan,
    done: protocol.Done,
    dim: int,
) -> None:
    """Bring the raw files of a run into `home`.

    They are then whole, what the worker signed, and what was ordered.

    Raises:
        DeviceError: They are not.
    """
    fault = _not_as_ordered(ordered, done, dim)
    if not fault:
        for _ in range(2):  # a torn copy is worth a second one
            for name in ("out.bin", "lat.bin", "log.jsonl"):
                _get(way, device, home, name)
            fault = _not_as_signed(home, plan, done)
            if not fault:
                return
    raise DeviceError(device.name, fault)


def _get(way: Way, device: Device, home: Path, name: str) -> None:
    try:
        way.call(lambda link: link.get(f"{home.name}/{name}", home / name))
    except FileNotFoundError:
        raise DeviceError(
            device.name, f"its worker said it was done, but there is no {name}"
        ) from None


def _not_as_ordered(ordered: protocol.Job, done: protocol.Done, dim: int) -> str:
    """What is wrong with a worker's "done", or ""."""
    if done.rows != ordered.shape[0]:
        return f"its worker was done after {done.rows} of {ordered.shape[0]} rows"
    sizes = (done.rows * done.dim * 4, (done.rows + done.runs) * 8)
    if done.dim != dim or (done.out_bytes, done.lat_bytes) != sizes:
        return (
            f"its worker contradicts itself: {done.rows} rows of {done.dim} numbers, first {dim}, "
            f"and {done.runs} runs in {done.out_bytes} and {done.lat_bytes} bytes"
        )
    return ""


def _not_as_signed(home: Path, plan: Plan, done: protocol.Done) -> str:
    """What is wrong with the fetched files, or ""."""
    for name, digest in (("out.bin", done.out_sha256), ("lat.bin", done.lat_sha256)):
        got = sha256(home / name)
        if got != digest:
            return (
                f"{home / name} is not what its worker signed: SHA-256 {got[:12]}…, expected "
                f"{digest[:12]}…; measure anew, without --resume"
            )
    if [(home / x).stat().st_size for x in ("out.bin", "lat.bin")] != [
        done.out_bytes,
        done.lat_bytes,
    ]:
        return "its worker signed files of other sizes than it said; measure anew, without --resume"
    times = np.fromfile(home / "lat.bin", "<i8")
    if times.min() <= 0:
        return f"{home / 'lat.bin'} has a time of {times.min()} ns, which cannot be"
    if done.runs < plan.min_runs and times[done.rows :].sum() / 1e9 < plan.max_s:
        return f"its worker measured {done.runs} of {plan.min_runs} runs"
    return ""


def read(
    device: Device,
    home: Path,
    job: protocol.Job,
    greeting: tuple[protocol.Hello, protocol.Ready, protocol.First],
    done: protocol.Done,
    restarts: int,
    heard: Heard,
) -> RunResult:
    """What verified files hold.

    Args:
        device: Where the run was.
        home: Folder with the files.
        job: What was ordered.
        greeting: Of the first worker that got so far.
        done: Of the last one.
        restarts: How many came after the first.
        heard: What else they said.

    Raises:
        DeviceError: The worker does not know what it was asked for.
    """
    hello, ready, first = greeting
    if (ready.accelerator, done.duty) != (job.accelerator, job.duty):
        what = "a duty cycle" if ready.accelerator == job.accelerator else "an accelerator"
        raise DeviceError(device.name, f"its worker ({hello.worker}) does not know {what}")
    outputs = np.fromfile(home / "out.bin", "<f4").reshape(done.rows, done.dim)
    times = np.fromfile(home / "lat.bin", "<i8").astype(np.int64)
    per_run = done.switches / done.measured if done.switches is not None and done.measured else None
    # A board over the network may turn out to be an emulator; the worker on it knows.
    execution = device.execution if device.execution != "native" else hello.execution
    facts = {
        **hello.facts,
        "device": device.name,
        "execution": execution,
        "runtime": hello.runtime,
        "runtime_version": hello.runtime_version,
        "provider": ready.provider,
        "threads": str(hello.threads),
        "cpu": hello.cpu,
        "cpus": str(hello.cpus),
        "features": " ".join(hello.features),
        "governor": hello.governor or "",
        **heard.facts(),
        "system": hello.system,
        "worker": hello.worker,
        "python": hello.python,
        "numpy": hello.numpy,
        "batch": str(first.batch),
        "import_ns": str(ready.import_ns),
        "restarts": str(restarts),
        "model_sha256": job.model_sha256,
        "inputs_sha256": job.inputs_sha256,
    }
    profile = heard.profile or protocol.Profile(
        runs=0, why=f"its worker ({hello.worker}) does not profile" if job.profile else ""
    )
    return RunResult(
        outputs=outputs.astype(np.float32),
        latency_ns=times[done.rows :],
        load_ns=ready.load_ns,
        first_ns=first.ns,
        embed_ns=times[: done.rows],
        peak_memory_bytes=done.peak_memory_bytes,
        facts=facts,
        conditions=Conditions(
            execution,
            per_run,
            done.cpu_share,
            restarts,
            done.disturbed,
            _firmware.disturbance(heard.throttled),
        ),
        marks=(*heard.marks, (done.t_s, done.runs)),
        placement=ready.placement,
        profile=tuple(OpProfile(x.name, x.op, x.on, x.calls, x.ns) for x in profile.ops),
        profile_missing=profile.why,
        folder=home,
    )
