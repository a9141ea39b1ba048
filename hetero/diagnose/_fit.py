"""Faults with numbers in them that no list can hold: found by fitting, judged like any other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from hetero.diagnose._pipeline import Array, Engine, centre, scale, standard, unit
from hetero.diagnose.hypotheses import Variant
from hetero.preprocess import Preprocess

#: Pictures that a fit is made on; the others are there to contradict it.
_FIT_ON = 32
_LOOK_AT = 20
_STEPS = 40

#: Different numbers in all vectors together, up to which they are codes of eight bits.
_LEVELS = 256


def fitted(
    spec: Preprocess,
    engine: Engine,
    pictures: Sequence[Array],
    tensor: Array,
    rows: Array,
    target: Array,
    flat_moved: bool,
) -> Iterator[Variant]:
    """Variants with numbers chosen so that the reference comes nearest to the device.

    Args:
        spec: How pictures should be prepared.
        engine: The reference model.
        pictures: Decoded, before the crop; none if the device's pixels are known.
        tensor: Its input for all canaries.
        rows: Its unit rows for them.
        target: The device's rows.
        flat_moved: Whether pictures of one brightness moved: no crop can move them, and no other
            constants can leave them.
    """
    curve = _curve(rows, target)
    if curve is not None:
        yield curve
    order = _order(rows, target)
    if order is not None:
        places, signs = order
        away = int((places != np.arange(len(places))).sum())
        yield Variant(
            "fit",
            "output",
            f"the vector's numbers are in another order ({away} of {len(places)} out of place, "
            f"{int((signs < 0).sum())} with the sign turned)",
            "keep the order in which the runtime gives the numbers",
            lambda x: x[:, places] * signs,
        )
    if pictures and not flat_moved:
        yield _window(spec, engine, pictures, target)
    if engine.net is not None and flat_moved:
        yield from _constants(spec, engine, tensor, target)


def _order(rows: Array, target: Array) -> tuple[Array, Array] | None:
    """For each number of the device's vector the reference's it follows, and the sign; or None."""
    from scipy.optimize import linear_sum_assignment

    a, b = (x - x.mean(axis=0) for x in (unit(rows), unit(target)))
    spread = np.outer(np.linalg.norm(b, axis=0), np.linalg.norm(a, axis=0))
    alike = (b.T @ a) / np.maximum(spread, 1e-12)
    if not np.isfinite(alike).all():
        return None
    mine, places = linear_sum_assignment(-np.abs(alike))
    best = alike[mine, places]
    if np.median(np.abs(best)) < 0.98 or ((places == mine) & (best > 0)).all():
        return None
    return places, np.sign(best).astype(np.float32)


def _curve(rows: Array, target: Array) -> Variant | None:
    """Each of the device's numbers as a rising function of the reference's: steps, an offset."""
    from scipy.optimize import isotonic_regression

    if not np.isfinite(target).all():
        return None
    x = unit(rows).ravel().astype(np.float64)
    order = np.argsort(x, kind="stable")
    levels = isotonic_regression(target.ravel()[order].astype(np.float64)).x
    places = x[order]

    def output(given: Array) -> Array:
        near = np.searchsorted(places, unit(given).astype(np.float64)).clip(0, len(places) - 1)
        coarse: Array = levels[near].astype(np.float32)
        return coarse

    kinds = np.unique(target)
    what = "each number is changed by one and the same curve (fitted)"
    if len(kinds) <= _LEVELS:
        what = (
            f"numbers are cut to {len(kinds)} levels, {kinds[0]:.4g} to {kinds[-1]:.4g}, where 0 "
            f"is {output(np.zeros((1, 1)))[0, 0]:.4g} (fitted)"
        )
    return Variant(
        "fit",
        "output",
        what,
        "send float numbers; turn codes back by (code - zero point) * scale before comparing",
        output,
    )


def _constants(spec: Preprocess, engine: Engine, tensor: Array, target: Array) -> Iterator[Variant]:
    """Other means and deviations, found by gradient descent on a part of the pictures."""
    import torch

    some = np.unique(np.linspace(0, len(tensor) - 1, _FIT_ON).astype(int))
    x = torch.from_numpy(np.ascontiguousarray(tensor[some]))
    wanted = torch.from_numpy(unit(target)[some])
    if not bool(torch.isfinite(wanted).all()):
        return
    best: tuple[float, Any, Any] | None = None
    for first in (1.0, 0.4, 2.5):
        scale = torch.full((1, 3, 1, 1), float(np.log(first)), requires_grad=True)
        shift = torch.zeros((1, 3, 1, 1), requires_grad=True)

        def loss(a: Any = scale, b: Any = shift) -> Any:
            rows = torch.nn.functional.normalize(engine.net(x * a.clamp(-8, 8).exp() + b), dim=1)
            return (1 - (rows * wanted).sum(dim=1)).mean()

        coarse = torch.optim.Adam([scale, shift], 0.08)
        for _ in range(_STEPS):
            coarse.zero_grad()
            gap = loss()
            gap.backward()
            coarse.step()
        fine = torch.optim.LBFGS([scale, shift], max_iter=_STEPS, line_search_fn="strong_wolfe")

        def closure(a: Any = fine, b: Any = loss) -> Any:
            a.zero_grad()
            gap = b()
            gap.backward()
            return gap

        if float(gap.detach()) < 0.02:
            fine.step(closure)  # type: ignore[no-untyped-call]
        found = float(loss().detach())
        if np.isfinite(found) and (best is None or found < best[0]):
            best = (found, scale.detach().clamp(-8, 8).exp(), shift.detach())
        if best is not None and best[0] < 1e-3:
            break
    if best is None:
        return
    a, b = (v.reshape(3).numpy().astype(np.float64) for v in best[1:])
    # x' = a·(p - mean)/std + b = (p - (mean - b·std/a)) / (std/a)
    mean, std = np.asarray(spec.mean), np.asarray(spec.std)
    own_std = std / a
    own_mean = mean - b * own_std
    numbers = (
        f"mean {', '.join(f'{v:.3f}' for v in own_mean)}; "
        f"std {', '.join(f'{v:.3f}' for v in own_std)}"
    )

    def normalise(pixels: Array, spec: Preprocess) -> Array:
        del spec
        p = pixels.astype(np.float32) / np.float32(255)
        scaled: Array = ((p - own_mean) / own_std).astype(np.float32)
        return scaled

    yield Variant(
        "fit",
        "normalise",
        f"pixels are normalised as if with {numbers} (fitted)",
        f"use the bundle's mean {spec.mean} and std {spec.std} on pixels scaled to 0..1",
        normalise,
    )


def _window(spec: Preprocess, engine: Engine, pictures: Sequence[Array], target: Array) -> Variant:
    """The part of the cropped picture that the device most likely looks at."""
    busy = [i for i, p in enumerate(pictures) if p.std() > 8] or list(range(len(pictures)))
    some = [busy[i] for i in np.unique(np.linspace(0, len(busy) - 1, _LOOK_AT).astype(int))]
    wanted = unit(target)[some].astype(np.float64)

    def gap(place: _Place) -> float:
        share, down, over = place
        if not 0.3 <= share <= 1 or max(abs(down), abs(over)) > (1 - share) / 2 + 1e-9:
            return 4.0
        cut = _cut(place)
        pixels = np.stack([scale(cut(pictures[i], spec), spec) for i in some])
        rows = engine.rows(np.ascontiguousarray(standard(pixels, spec).transpose(0, 3, 1, 2)))
        return float(1 - (rows * wanted).sum(axis=1).mean())

    ways = (-1, 0, 1)
    best = min(
        (
            (share, y * (1 - share) / 2, x * (1 - share) / 2)
            for share in (0.6, 0.75, 0.85, 0.93)
            for y in ways
            for x in ways
        ),
        key=gap,
    )
    for step in (0.05, 0.025, 0.0125):
        near = (
            (best[0] + a * step, best[1] + b * step / 2, best[2] + c * step / 2)
            for a in ways
            for b in ways
            for c in ways
        )
        best = min(near, key=gap)
    share, down, over = best
    return Variant(
        "fit",
        "crop",
        f"only a part of the cropped picture is used: {share:.0%} of its sides, {down:+.0%} down "
        f"and {over:+.0%} across from the middle (fitted)",
        "crop as the bundle's preprocess spec says, and nothing more",
        _cut(best),
    )


#: Share of the sides, and how far down and across its middle lies, in sides.
_Place = tuple[float, float, float]


def _cut(place: _Place) -> Callable[[Array, Preprocess], Array]:
    share, down, over = place

    def crop(rgb: Array, spec: Preprocess) -> Array:
        whole = centre(rgb, spec)
        out = []
        for side, off in zip(whole.shape[:2], (down, over), strict=True):
            length = min(side, max(1, round(side * share)))
            first = round((side - length) / 2 + side * off)
            out.append(slice(max(0, min(first, side - length)), None))
            out[-1] = slice(out[-1].start, out[-1].start + length)
        return whole[out[0], out[1]]

    return crop
