"""The run-folder protocol, version 1: how this machine and a worker work together.

They share nothing but files. A worker is started detached, so that a cut connection, a closed
terminal or a killed host takes nothing with it. Below the device's work folder:

    store/SHA256.onnx     what was sent, named by its content, so that it is sent once:
    store/SHA256.bin      models, and inputs: the rows one after the other, little-endian; a Core ML
                          package, which is a folder, goes as SHA256.mlpackage.zip
    RUN/job.json          the order, see `Job`; files are named relative to RUN, with their SHA-256
    RUN/pid               the worker's process id; the worker holds a lock on it while it lives
    RUN/log.jsonl         events, one JSON object a line, only ever appended
    RUN/out.bin           float32 little-endian, one row of `dim` numbers per input row
    RUN/lat.bin           int64 little-endian nanoseconds: one per input row, then one per measured
                          run of the fixed input
    RUN/stop              made by the host: end at the next row
    RUN/stdout.txt, stderr.txt, reserve      chatter of the runtime; room for a last error

A run goes like this (times shortened; the far end's own monotonic clock, never the link's; what a
runtime cannot be imported without, as NumPy, is part of "import_ns"):

    {"hetero": "hello", "t_s": 0.1, "version": 1, "worker": "python", "pid": 71, "numpy": "2.3.5",
        "runtime": "onnxruntime", "runtime_version": "1.32.0", "threads": 1, "cpu": "Cortex-A76",
        "cpus": 4, "features": ["asimd", "dotprod"], "system": "Linux 6.6 aarch64",
        "python": "3.11.2", "governor": "ondemand"}
    {"hetero": "ready", "t_s": 0.2, "provider": "CPUExecutionProvider", "input_dtype": "uint8",
        "input_shape": [null, 32, 32, 3], "import_ns": 77000000, "load_ns": 9000000}
    {"hetero": "first", "t_s": 0.2, "ns": 900000, "dim": 64, "batch": 1, "start": 0, "runs": 0}
    {"hetero": "run", "t_s": 0.2, "i": 0, "n": 1, "ns": 310000}          every row; n rows a batch
    {"hetero": "beat", "t_s": 2.1, "phase": "embed", "rows": 7, "runs": 0}   every 2 s, any time
    {"hetero": "bench", "t_s": 2.9, "warmup_runs": 3200, "runs": 0}      warm; measuring begins
    {"hetero": "telemetry", "t_s": 2.9, "governor": "ondemand", "clock_mhz": 2400,
        "temperatures_c": {"cpu-thermal": 51.0}, "load": 0.4}    before, with each beat, after
    {"hetero": "done", "t_s": 13.0, "rows": 8, "dim": 64, "runs": 31000, "out_bytes": 2048,
        "out_sha256": "9f...", "lat_bytes": 248064, "lat_sha256": "c1...",
        "peak_memory_bytes": 61000000, "switches": 12, "cpu_share": 0.99, "measured": 31000}

Instead of "done" it may end with ``{"hetero": "stopped", "rows": 3, "runs": 0}`` or with
``{"hetero": "error", "kind": KIND, "text": "..."}``, where an error may also come before "hello":

    model-refused     the runtime does not take the model file, or what it gives is no embedding
    input-mismatch    the model takes another dtype or shape
    runtime-missing   the runtime is not installed, does not load, or is not known to this worker
    file-torn         the model or the inputs are not what was sent (the host sends them again);
                      inputs may be verified while rows are embedded, which are then thrown away
    version           the job is of another version
    disk-full  out-of-memory  busy  run-failed  worker-failed       as they say

**Accepted** is a run only on "done", when both files have the hashes and sizes it names and hold
as many rows and runs as the job asked for. An exit code, a closed pipe or a quiet log is nothing.

**Resuming.** A row is written as: its bytes to out.bin, its time to lat.bin, its "run" event. It
*is there* when it is whole in both files; the log does not decide. A worker that is started on a
folder with results cuts both files to the rows that are there (with a fixed batch, to whole
batches), says in "first" at which row it starts, and goes on; measured runs that are there stay,
and after a new warm-up it measures what is missing. So nothing that was measured is lost but the
row being written, and nothing is there twice. All workers of one run must have the same runtime
version and processor; the host refuses the run otherwise. Load and first inference are those of the
first worker that got so far.

**More to tell.** "hello" may carry ``"facts": {"adapter": "..."}``, texts for the report, and
"done" may carry ``"disturbed": "the page was hidden"``, a reason not to trust the times.
**Where it applies.** "hello" says ``"execution": "emulated"`` when the worker notices that an
emulator runs it. "telemetry" before and after has ``"throttled": 327685``, the bits of
``vcgencmd get_throttled``, on a Raspberry Pi.
**On request.** A job may ask for more; a worker that cannot does not know the field, and the host
sees that the answer is missing. ``"accelerator": "xnnpack"`` runs the model there, and "ready" then
says ``"accelerator": "xnnpack", "placement": {"xnnpack": 61, "cpu": 2}``, in operators. ``"duty":
0.5`` rests as long as it runs while measuring; "done" repeats it. ``"profile": true`` records each
operator, and before "done" comes ``{"hetero": "profile", "runs": 100, "ops": [{"name": "conv1",
"op": "Conv", "on": "CPUExecutionProvider", "calls": 100, "ns": 2100000}], "why": ""}``, where "why"
says why there are none.

**Tolerance.** Lines without the mark "hetero" are chatter and ignored, so are events and fields
not known here; a line without its end is not read before the end comes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hetero._files import canonical_json

VERSION = 1

#: The runtime that runs a format, and the extra that brings it.
RUNTIMES: Mapping[str, str] = {"onnx": "onnxruntime", "tflite": "litert", "coreml": "coreml"}

#: What a worker writes into its run folder, and a fresh start removes.
WRITTEN = ("out.bin", "lat.bin", "log.jsonl", "pid", "reserve", "stdout.txt", "stderr.txt")

#: Of inputs.
DTYPES = ("uint8", "int8", "float32")
Sha256 = Field(pattern=r"^[0-9a-f]{64}$")


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    t_s: float = 0.0


class Hello(_Message):
    """The worker's greeting: who computes, and with what; 0 threads: as the runtime chooses."""

    version: int
    worker: str
    pid: int
    runtime: str
    runtime_version: str
    threads: int
    cpu: str
    features: list[str]
    system: str
    cpus: int = 0
    python: str = ""
    numpy: str = ""
    governor: str | None = None
    facts: dict[str, str] = Field(default_factory=dict)
    execution: Literal["native", "emulated"] = "native"

    @property
    def arithmetic(self) -> tuple[str, ...]:
        """What has to be the same for rows of two workers to belong together."""
        return (self.runtime, self.runtime_version, self.cpu, " ".join(self.features))


class Ready(_Message):
    """The model is loaded."""

    provider: str
    import_ns: int = Field(ge=0)
    load_ns: int = Field(ge=0)
    accelerator: str = ""
    placement: dict[str, int] = Field(default_factory=dict)


class First(_Message):
    """The first inference is done; rows from `start` on are going to come."""

    ns: int = Field(ge=0)
    dim: int = Field(ge=1)
    batch: int = Field(ge=1)
    start: int = Field(ge=0)
    runs: int = Field(ge=0)


class Row(_Message):
    """The rows i to i + n - 1 are in the files."""

    i: int = Field(ge=0)
    n: int = Field(ge=1)
    ns: int = Field(ge=0)


class Beat(_Message):
    """The worker lives."""

    phase: str
    rows: int = Field(ge=0)
    runs: int = Field(ge=0)


class Telemetry(_Message):
    """Clock, heat, load and the firmware's complaints, where they can be read."""

    governor: str | None = None
    clock_mhz: float | None = None
    temperatures_c: dict[str, float] = Field(default_factory=dict)
    load: float | None = None
    throttled: int | None = Field(default=None, ge=0)


class Bench(_Message):
    """Warm; what comes now is measured."""

    warmup_runs: int = Field(ge=0)
    runs: int = Field(ge=0)


class OpTime(_Message):
    """What one operator of the model took in all its calls."""

    name: str
    op: str = ""
    on: str = ""
    calls: int = Field(ge=0)
    ns: int = Field(ge=0)


class Profile(_Message):
    """Every operator's time, slowest first; `why` says why there are none."""

    runs: int = Field(ge=0)
    ops: list[OpTime] = Field(default_factory=list)
    why: str = ""


class Error(_Message):
    """The worker ended for a reason it knows."""

    kind: str
    text: str


class Stopped(_Message):
    """The worker ended because it was asked to."""

    rows: int = Field(ge=0)
    runs: int = Field(ge=0)


class Done(_Message):
    """Everything is in the files."""

    rows: int = Field(ge=0)
    dim: int = Field(ge=1)
    runs: int = Field(ge=0)
    out_bytes: int = Field(ge=0)
    out_sha256: str = Sha256
    lat_bytes: int = Field(ge=0)
    lat_sha256: str = Sha256
    peak_memory_bytes: int = Field(default=0, ge=0)
    switches: int | None = None
    cpu_share: float | None = Field(default=None, ge=0, le=1)
    measured: int = Field(default=0, ge=0)
    disturbed: str = ""
    duty: float = 1.0


Event = Hello | Ready | First | Row | Beat | Telemetry | Bench | Profile | Error | Stopped | Done

_EVENTS: dict[str, type[Event]] = {
    "hello": Hello,
    "ready": Ready,
    "first": First,
    "run": Row,
    "beat": Beat,
    "telemetry": Telemetry,
    "bench": Bench,
    "profile": Profile,
    "error": Error,
    "stopped": Stopped,
    "done": Done,
}


class TornError(ValueError):
    """An event that carries the mark but not what belongs into it."""


@dataclass
class Reader:
    """Events out of a log that comes in pieces, in order; a lifetime is one log.

    Attributes:
        offset: Bytes of the log fed so far.
        chatter: The last lines that were not events.
    """

    offset: int = 0
    chatter: list[str] = field(default_factory=list)
    _rest: bytes = b""

    def feed(self, data: bytes) -> Iterator[tuple[dict[str, Any], Event]]:
        """The events that `data` completes: each as it was sent, and as it is understood.

        Raises:
            TornError: An event of a known name lacks a field, or one has a wrong type.
        """
        self.offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            found = _parse(line)
            if found is None:
                if line.strip():
                    self.chatter = [*self.chatter, line.decode(errors="replace")[:200]][-5:]
                continue
            model = _EVENTS.get(found["hetero"])
            if model is None:
                continue
            try:
                yield found, model.model_validate(found)
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(str(x) for x in first["loc"])
                raise TornError(
                    f"sent {found['hetero']!r} with a wrong field {where!r} ({first['msg']})"
                ) from error


def _parse(line: bytes) -> dict[str, Any] | None:
    """The marked object on a line, or None for anything else."""
    if b'"hetero"' not in line:
        return None
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    marked = isinstance(found, dict) and isinstance(found.get("hetero"), str)
    return found if marked else None


@dataclass(frozen=True)
class Job:
    """The order for a worker.

    Attributes:
        runtime: A value of `RUNTIMES`.
        model, model_sha256: File name in the store, and its hash.
        inputs, inputs_sha256: The same for the inputs.
        dtype, shape: Of the inputs: one of `DTYPES`; the number of rows first.
        threads: Of the runtime.
        plan: warmup_runs, warmup_s, min_runs, min_s, max_s, beat_s.
        repeat: Number of a repetition, which means nothing to the worker.
        accelerator: Where the runtime is to run the model; "" for its usual processor.
        duty: Part of the measured time in which the model runs, above 0 and at most 1.
        profile: Whether each operator is timed.
    """

    runtime: str
    model: str
    model_sha256: str
    inputs: str
    inputs_sha256: str
    dtype: str
    shape: tuple[int, ...]
    threads: int
    plan: Mapping[str, float]
    repeat: int = 0
    accelerator: str = ""
    duty: float = 1.0
    profile: bool = False

    def to_json(self) -> dict[str, object]:
        """The content of job.json; what is as usual is left out."""
        usual = {"repeat": 0, "accelerator": "", "duty": 1.0, "profile": False}
        asked = {name: getattr(self, name) for name in usual}
        return {
            "version": VERSION,
            "runtime": self.runtime,
            "model": {"file": f"../{self.model}", "sha256": self.model_sha256},
            "inputs": {
                "file": f"../{self.inputs}",
                "sha256": self.inputs_sha256,
                "dtype": self.dtype,
                "shape": list(self.shape),
            },
            "threads": self.threads,
            "plan": dict(self.plan),
            **{name: value for name, value in asked.items() if value != usual[name]},
        }

    def folder(self, device: str) -> str:
        """The name of the run folder: equal for equal orders to one device, else different."""
        digest = hashlib.sha256(canonical_json([device, self.to_json()]).encode()).hexdigest()
        kind = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")[:40]
        return f"{kind}-{self.runtime}-{digest[:12]}"
