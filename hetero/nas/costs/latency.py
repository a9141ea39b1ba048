"""Latency on a device, from a table of what its operators take there.

`hetero nas measure` runs exported architectures on a device and explains their latencies by what
their operators do: each class of operator (kind, kernel, stride, side of its input) takes so many
nanoseconds a call and so many for a million multiply-accumulates. The table is a CSV file that can
be written by hand or come from elsewhere; it says how far it was off on architectures that it was
not fitted to.

Paper: the idea of a look-up table is that of Cai et al., "ProxylessNAS", ICLR 2019,
    arXiv:1812.00332.
Differs: operators are not run one by one, where entering and leaving the runtime would count for
    more than the operator; whole networks are run and the table is fitted to them, by least squares
    without negative times.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor, nn

from hetero._files import write_atomically
from hetero.errors import ConfigError
from hetero.models import EmbeddingNet, _evaluating

UNIT = "ms"
_COLUMNS = ("operator", "ns_per_call", "ns_per_mmac")
#: The row that every network has once: entering and leaving the runtime.
BASE = "base"
#: How much operators may be pulled towards their kind, and in how many parts networks are left out.
_PULLS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_FOLDS = 5

#: Operator class -> calls, and millions of multiply-accumulates.
Operators = Mapping[str, tuple[int, float]]


def operators(net: EmbeddingNet, size_px: int) -> dict[str, tuple[int, float]]:
    """What a network does with one picture, by class of operator."""
    found: dict[str, tuple[int, float]] = {}

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        side = int(inputs[0].shape[-1]) if inputs[0].ndim == 4 else 1
        if isinstance(layer, nn.Conv2d):
            kernel, stride = layer.kernel_size[0], layer.stride[0]
            kind = "depthwise" if layer.groups > 1 else "pointwise" if kernel == 1 else "conv"
            name = f"{kind} {kernel}x{kernel} s{stride} {side}px"
            macs = output.numel() * layer.weight[0].numel()
        else:
            assert isinstance(layer, nn.Linear)
            name, macs = "linear", output.numel() * layer.in_features
        calls, mmacs = found.get(name, (0, 0.0))
        found[name] = (calls + 1, mmacs + macs / 1e6)

    hooks = [
        m.register_forward_hook(note) for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)
    ]
    try:
        with _evaluating(net):
            net(torch.zeros(1, 3, size_px, size_px))
    finally:
        for hook in hooks:
            hook.remove()
    return found


@dataclass(frozen=True)
class Table:
    """Nanoseconds a call and a million multiply-accumulates, by class of operator.

    Attributes:
        rows: Class -> the two numbers; `BASE` has one a network. A row of a kind alone, such as
            "depthwise", stands for all of its classes that have none.
        about: Device, format, precision and how good the fit is: free text by key.
    """

    rows: Mapping[str, tuple[float, float]]
    about: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse numbers that are no times."""
        for name, times in self.rows.items():
            if not all(np.isfinite(t) and t >= 0 for t in times):
                raise ConfigError(f"latency table: {name!r} has {times}; times are at least 0")

    def latency_ms(self, done: Operators) -> float:
        """What a network takes that does this.

        Raises:
            ConfigError: The table does not know one of its operators.
        """
        unknown = sorted(n for n in done if n not in self.rows and _kind(n) not in self.rows)
        if unknown:
            raise ConfigError(
                f"latency table: no row for {unknown[0]!r} ({len(unknown)} such operators); "
                "measure the space that is searched"
            )
        total = 0.0
        for name, (calls, mmacs) in done.items():
            call_ns, mmac_ns = self.rows.get(name) or self.rows[_kind(name)]
            total += calls * call_ns + mmacs * mmac_ns
        return (total + sum(self.rows.get(BASE, (0.0, 0.0)))) / 1e6

    def save(self, path: Path) -> None:
        """Write it as CSV, what it is about in comment lines before."""
        text = io.StringIO()
        for key, value in self.about.items():
            text.write(f"# {key}: {value}\n")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_COLUMNS)
        for name, (call, mmac) in sorted(self.rows.items()):
            writer.writerow([name, f"{call:.1f}", f"{mmac:.1f}"])
        write_atomically(path, text.getvalue())

    @staticmethod
    def load(path: Path) -> Table:
        """Read what `save` or somebody else wrote.

        Raises:
            ConfigError: There is no such file, or it is no such table.
        """
        try:
            lines = path.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: cannot read the latency table ({error})") from error
        notes = [x.removeprefix("#").partition(":") for x in lines if x.startswith("#")]
        try:
            found = list(csv.DictReader([x for x in lines if not x.startswith("#")]))
            rows = {
                r["operator"]: (float(r["ns_per_call"]), float(r["ns_per_mmac"])) for r in found
            }
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"{path}: not a latency table; expected columns {', '.join(_COLUMNS)} ({error!r})"
            ) from error
        if not rows:
            raise ConfigError(f"{path}: the latency table has no rows")
        return Table(rows, {k.strip(): v.strip() for k, _, v in notes})


def fitted(
    done: Sequence[Operators], latency_ns: Float64[np.ndarray, " n"], about: Mapping[str, str]
) -> Table:
    """The table that explains measured latencies best, in relative terms, without negative times.

    An operator's times are pulled towards those of its kind, as much as predicts best on networks
    left out in turn: few networks cannot tell all operators apart.

    Args:
        done: What each measured network does.
        latency_ns: What it took.
        about: For the table.

    Raises:
        ConfigError: Nothing was measured.
    """
    if not len(done) or len(done) != len(latency_ns):
        raise ConfigError(f"latency table: {len(done)} networks with {len(latency_ns)} latencies")
    kinds = [_by_kind(some) for some in done]
    prior = Table(_solve(kinds, latency_ns, {}, 0.0))

    def table(rows: Sequence[int], pull: float) -> Table:
        chosen = [done[r] for r in rows]
        return Table({**prior.rows, **_solve(chosen, latency_ns[rows], prior.rows, pull)}, about)

    everything = list(range(len(done)))
    folds = [everything[at :: min(_FOLDS, len(done))] for at in range(min(_FOLDS, len(done)))]

    def off(pull: float) -> float:
        out = [
            np.abs(
                errors(
                    table([r for r in everything if r not in fold], pull),
                    [done[r] for r in fold],
                    latency_ns[fold],
                )
            ).mean()
            for fold in folds
        ]
        return float(np.mean(out))

    best = min(_PULLS, key=off) if len(folds) > 1 else max(_PULLS)
    return table(everything, best)


def _by_kind(done: Operators) -> dict[str, tuple[int, float]]:
    out: dict[str, tuple[int, float]] = {}
    for name, (calls, mmacs) in done.items():
        known = out.get(_kind(name), (0, 0.0))
        out[_kind(name)] = (known[0] + calls, known[1] + mmacs)
    return out


def _kind(name: str) -> str:
    return name.partition(" ")[0]


def _solve(
    done: Sequence[Operators],
    latency_ns: Float64[np.ndarray, " n"],
    prior: Mapping[str, tuple[float, float]],
    pull: float,
) -> dict[str, tuple[float, float]]:
    """Times of each operator by least squares, pulled towards those of its kind."""
    from scipy.optimize import nnls

    names = sorted({name for some in done for name in some})
    wanted: list[list[float]] = []
    for some in done:
        pairs = [some.get(name, (0, 0.0)) for name in names]
        wanted.append([1.0, *(float(c) for c, _ in pairs), *(m for _, m in pairs)])
    # Each row divided by its latency: a small net's microsecond counts as much as a big one's.
    matrix = np.asarray(wanted) / latency_ns[:, None]
    scale = np.maximum(np.linalg.norm(matrix, axis=0), 1e-30)
    matrix, right = matrix / scale, np.ones(len(done))
    if pull:
        near = [prior[_kind(name)] for name in names]
        base = prior.get(BASE, (0.0, 0.0))[0]
        aim = np.array([base, *(c for c, _ in near), *(m for _, m in near)]) * scale
        matrix = np.concatenate([matrix, np.sqrt(pull) * np.eye(len(scale))])
        right = np.concatenate([right, np.sqrt(pull) * aim])
    # To a tenth of a nanosecond, as a file has it.
    times = np.round(nnls(matrix, right)[0] / scale, 1)
    half = len(names)
    rows = {
        name: (float(times[1 + at]), float(times[1 + half + at])) for at, name in enumerate(names)
    }
    return {BASE: (float(times[0]), 0.0), **rows}


def errors(
    table: Table, done: Sequence[Operators], latency_ns: Float64[np.ndarray, " n"]
) -> Float64[np.ndarray, " n"]:
    """How far the table is off on these networks, relative to what they took; 0.05 is 5 % above."""
    predicted = np.array([table.latency_ms(some) * 1e6 for some in done])
    return np.asarray(predicted / latency_ns - 1, np.float64)


def cost(options: str) -> Callable[[EmbeddingNet, int], float]:
    """By the table in ``latency:FILE.csv``, and as much more as the table says it may be wrong by.

    Its line "margin", if there is one, is the share by which architectures that it was not fitted
    to took longer than it said, nine times of ten at most: a model chosen at a cap has to be under
    it when it is measured.

    Raises:
        ConfigError: No file is named, or it is no table.
    """
    if not options:
        raise ConfigError("cost latency: name a table, latency:FILE.csv; `hetero nas measure`")
    table = Table.load(Path(options))
    try:
        more = 1 + float(table.about.get("margin", 0))
    except ValueError:
        raise ConfigError(
            f"{options}: margin must be a number, got {table.about['margin']!r}"
        ) from None

    def of(net: EmbeddingNet, size_px: int) -> float:
        return more * table.latency_ms(operators(net, size_px))

    return of
