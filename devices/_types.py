"""What a device is, what is asked of it, and what comes back."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int64

from hetero.errors import ConfigError

#: "native": the device's own processor, so times are times. "emulated": right numbers, meaningless
#: times. "reference": a stand-in that is not the device at all.
Execution = Literal["native", "emulated", "reference"]


@runtime_checkable
class Link(Protocol):
    """The way to a device while it is open: six operations on one folder there.

    Every name is a relative path with forward slashes, below the device's work folder. `run` is the
    name of a run folder, see `hetero.devices._protocol`. Each operation raises ConnectionError when
    the way there is cut (the session connects again and goes on), and DeviceError when the device
    itself refuses.
    """

    def probe(self) -> Mapping[str, Any]:
        """What the device says of itself: the facts of the worker's ``--probe``."""
        ...

    def put(self, source: Path, name: str, *, again: bool = True) -> None:
        """Write a file of this machine to `name`, whole or not at all, making folders.

        Args:
            source: File on this machine.
            name: Where it goes.
            again: When False, a file of that name and size is left alone; for names that contain
                the content's hash.
        """
        ...

    def start(self, run: str, *, fresh: bool) -> None:
        """Start a detached worker on a run folder and return at once.

        Args:
            run: Holds a ``job.json``.
            fresh: Remove what an earlier worker wrote. A ``stop`` file is removed in any case.
        """
        ...

    def follow(self, run: str, offset: int) -> tuple[bytes, bool]:
        """The bytes of ``log.jsonl`` from `offset` on, and whether the worker of ``pid`` lives.

        A log that is not there yet is empty. At most 1 MiB comes at a time.
        """
        ...

    def get(self, name: str, target: Path) -> None:
        """Copy the file `name` to `target` on this machine.

        Raises:
            FileNotFoundError: The device has no such file.
        """
        ...

    def stop(self, run: str) -> None:
        """Ask the worker to stop by a ``stop`` file, wait a moment, kill it if it has not."""
        ...


@runtime_checkable
class Device(Protocol):
    """A place where a worker can be started; nothing is open until `connect`.

    A device may also have `formats`, where it does not run the usual ones; `lane`, a name for the
    processor it shares with other devices; and `accelerator`, where its address says what runs the
    model. See `formats_of`, `lane_of` and `Plan`.

    Attributes:
        name: As the user wrote it, "local:threads=2"; the first word of every error.
        execution: Whether its times mean anything.
        threads: What its address asks for, or None to leave it to the plan.
    """

    @property
    def name(self) -> str: ...

    @property
    def execution(self) -> Execution: ...

    @property
    def threads(self) -> int | None: ...

    def connect(self, folder: Path) -> AbstractContextManager[Link]:
        """The open way to the device.

        Args:
            folder: Where this machine keeps the results; a device that shares the file system
                works there too.

        Raises:
            ConnectionError: It cannot be reached at the moment.
            DeviceError: It will never be reached this way.
        """
        ...


#: What a worker in Python runs wherever it is.
USUAL_FORMATS = ("onnx", "tflite")

#: The lane of devices that are this machine itself.
HERE = "this machine"


def formats_of(device: Device) -> tuple[str, ...]:
    """The file formats that a device runs."""
    return tuple(getattr(device, "formats", USUAL_FORMATS))


def lane_of(device: Device) -> str:
    """What a device shares its processor with: of one lane, one device runs at a time."""
    return str(getattr(device, "lane", device.name))


@dataclass(frozen=True)
class Plan:
    """How long to measure and how long to wait.

    The defaults are those of LiteRT's `benchmark_model` with a longer measurement: load and first
    inference alone, warm-up until 10 runs and 1 s, then until 100 runs and 10 s.

    Attributes:
        warmup_runs, warmup_s: Both have to be reached before anything is measured.
        min_runs, min_s: Both have to be reached; with both 0 no latency is measured.
        max_s: Warm-up and measurement each end here in any case.
        threads: Of the runtime, unless the device's address says otherwise.
        timeout_s: For everything, restarts included.
        heartbeat_s: Silence after which a worker without a process counts as dead; one with a
            process is given up after six times as long.
        stall_s: Time without a new row or measured run, loading included, after which a worker
            counts as hung.
        beat_s: How often the worker says that it lives.
        restarts: How often a worker that died or hung is started again, each time at the first
            missing row.
        reconnect_s: How long a cut way to the device is tried again.
        accelerator: Where the runtime is to run the model: a provider of onnxruntime without
            "ExecutionProvider", in lower case; "cpu" or "xnnpack" of LiteRT; "cpu", "gpu" or "ne"
            (the Neural Engine) of Core ML; "" leaves it to the worker.
        duty: Part of the measured time in which the model runs, above 0 and at most 1; `min_s` and
            `max_s` count running only.
        profile: Whether each operator is timed, which makes everything slower.
    """

    warmup_runs: int = 10
    warmup_s: float = 1.0
    min_runs: int = 100
    min_s: float = 10.0
    max_s: float = 150.0
    threads: int = 1
    timeout_s: float = 3600.0
    heartbeat_s: float = 10.0
    stall_s: float = 300.0
    beat_s: float = 2.0
    restarts: int = 2
    reconnect_s: float = 60.0
    accelerator: str = ""
    duty: float = 1.0
    profile: bool = False

    def __post_init__(self) -> None:
        least = {"threads": 1}
        above_0 = {"max_s", "timeout_s", "heartbeat_s", "stall_s", "beat_s", "duty"}
        if self.duty > 1:
            raise ConfigError(f"plan: duty must be above 0 and at most 1, got {self.duty}")
        if not re.fullmatch("[a-z0-9]*", self.accelerator):
            raise ConfigError(f"plan: accelerator is one small word, got {self.accelerator!r}")
        for name, value in vars(self).items():
            if isinstance(value, str):
                continue
            low = least.get(name, 0)
            if not math.isfinite(value) or value < low or (name in above_0 and value == 0):
                bound = "above 0" if name in above_0 else f"at least {low}"
                raise ConfigError(f"plan: {name} must be {bound}, got {value}")

    @classmethod
    def quick(cls, threads: int = 1) -> Plan:
        """A plan for smoke runs: under a second of measuring, numbers for orientation only."""
        return cls(warmup_runs=2, warmup_s=0.0, min_runs=20, min_s=0.2, max_s=5.0, threads=threads)

    @classmethod
    def thorough(cls, threads: int = 1) -> Plan:
        """A plan with MLPerf Mobile's minimum: 1024 runs and 60 s."""
        return cls(min_runs=1024, min_s=60.0, max_s=600.0, threads=threads)


@dataclass(frozen=True)
class Conditions:
    """Under which circumstances the latencies were measured; None is not known.

    Attributes:
        execution: As the device says.
        switches_per_run: Involuntary context switches per measured run.
        cpu_share: Part of the measured time, 0..1, in which the calling thread had a processor.
        restarts: How often the worker was started again.
        disturbed: Why the worker itself does not trust its times; empty when it does.
        firmware: What the device's firmware did to its clock meanwhile, in words; "" for nothing.
    """

    execution: Execution = "native"
    switches_per_run: float | None = None
    cpu_share: float | None = None
    restarts: int = 0
    disturbed: str = ""
    firmware: str = ""


@dataclass(frozen=True)
class OpProfile:
    """What one operator of a model took.

    Attributes:
        name, op: Its name in the file, and its kind ("Conv").
        on: What it ran on, as the runtime calls it.
        calls: How often it ran.
        ns: All calls together.
    """

    name: str
    op: str
    on: str
    calls: int
    ns: int


@dataclass(frozen=True, eq=False)
class RunResult:
    """What a device gave for one model file: raw, nothing judged, nothing normalised.

    Attributes:
        outputs: One row per input, as the runtime gave them; may hold anything, also NaN.
        latency_ns: Every measured warm run of one fixed input, in order.
        load_ns: From the file to a runtime ready to run, the runtime's import excluded.
        first_ns: The first inference after loading.
        embed_ns: The one run of each input; with a file of fixed batch, the time of its batch.
        peak_memory_bytes: High-water mark of the worker's process, 0 where it is not known.
        facts: Runtime and exact version, processor, features, threads, kind of execution ...
        conditions: For judging the latencies.
        marks: Seconds of the worker's clock and measured runs until then, from the beginning of
            the measurement to its end.
        placement: Operators by where they run; empty where it was not asked for or is not known.
        profile: The slowest first; empty where it was not asked for, or `profile_missing`.
        profile_missing: Why the worker could not profile.
        folder: Holds the raw files: job.json, out.bin, lat.bin, log.jsonl.
    """

    outputs: Float32[np.ndarray, "n d"]
    latency_ns: Int64[np.ndarray, " m"]
    load_ns: int
    first_ns: int
    embed_ns: Int64[np.ndarray, " n"]
    peak_memory_bytes: int
    facts: Mapping[str, str]
    conditions: Conditions = field(default_factory=Conditions)
    marks: tuple[tuple[float, int], ...] = ()
    placement: Mapping[str, int] = field(default_factory=dict)
    profile: tuple[OpProfile, ...] = ()
    profile_missing: str = ""
    folder: Path | None = None


def read_options(kind: str, address: str, known: tuple[str, ...]) -> dict[str, str]:
    """The ``key=value,key=value`` of a device's address.

    Raises:
        ConfigError: A part without "=", a key that is not known, or one given twice.
    """
    options: dict[str, str] = {}
    for part in filter(None, address.split(",")):
        key, equals, value = part.partition("=")
        if not equals or not value or key not in known or key in options:
            raise ConfigError(
                f"{kind}: cannot use {part!r} in the address {address!r}; "
                f"expected each of {', '.join(f'{k}=...' for k in known)} at most once"
            )
        options[key] = value
    return options


def read_threads(kind: str, options: Mapping[str, str]) -> int | None:
    """The number of threads in a device's options, or None where they name none.

    Raises:
        ConfigError: It is not a number of at least 1.
    """
    threads = options.get("threads")
    if threads is not None and (not threads.isdecimal() or int(threads) < 1):
        raise ConfigError(f"{kind}: threads must be a number of at least 1, got {threads!r}")
    return int(threads) if threads else None
