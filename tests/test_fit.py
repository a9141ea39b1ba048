from __future__ import annotations

import json
import os
import pickle
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from toys import Listener, Tripwire, quiet

from hetero.errors import BundleError, ConfigError, HeteroError, Interrupted, TrainingError
from hetero.fit import SETTLED_STEPS, Check, Epoch, Objective, Settings, fit
from hetero.progress import Reporter

PICTURES = np.random.default_rng(0).integers(0, 256, (24, 2, 2, 3), dtype=np.uint8)
WELL = Check(score=0.9, chance=0.1, spread=0.5)


class Sums(Objective):
    """Learns the mean of a picture's bytes; keeps what it was called with."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Dropout(dropout), nn.Linear(12, 1))
        self.calls: list[tuple[list[int], int, float]] = []

    def forward(
        self, pixels: Tensor, views: Tensor, rows: Tensor, epoch: int, progress: float
    ) -> Tensor:
        self.calls.append((rows.tolist(), epoch, progress))
        x = pixels.flatten(1).float() / 255
        # The views matter too, so that a run that draws others is found out.
        wanted = x.mean(1, keepdim=True) + 0.01 * views[:, :1]
        return ((self.net(x) - wanted) ** 2).mean()


def run(
    folder: Path,
    settings: Settings | None = None,
    *,
    objective: Sums | None = None,
    found: Check | Callable[[nn.Module], Check] = WELL,
    reporter: Reporter | None = None,
    resume: bool = False,
    identity: dict[str, Any] | None = None,
    pictures: np.ndarray = PICTURES,
) -> tuple[Sums, tuple[Epoch, ...]]:
    torch.manual_seed(7)
    objective = objective or Sums()
    history = fit(
        objective,
        pictures,
        settings or Settings(epochs=3, batch=8),
        folder=folder,
        identity={"data": "abc", "recipe": {"backbone": "x"}} if identity is None else identity,
        validate=found if callable(found) else lambda net: found,
        resume=resume,
        reporter=reporter or quiet(),
        what="train",
    )
    return objective, history


def bits(objective: Objective) -> dict[str, bytes]:
    return {k: v.numpy().tobytes() for k, v in objective.state_dict().items()}


def judged(history: tuple[Epoch, ...]) -> list[Epoch]:
    """A history without its speeds, which no two runs share."""
    return [replace(e, images_per_s=0.0) for e in history]


# -- what it does -------------------------------------------------------------------------------


def test_a_run_learns_and_its_history_is_on_disk(tmp_path: Path) -> None:
    _, history = run(tmp_path, Settings(epochs=30, batch=8, lr=0.05))
    assert history[-1].loss < history[0].loss / 10
    assert [e.epoch for e in history] == list(range(1, 31))
    assert all(e.score == WELL.score and e.images_per_s > 0 for e in history)
    stored = json.loads((tmp_path / "history.json").read_text())["epochs"]
    assert tuple(Epoch(**row) for row in stored) == history


def test_the_loss_in_the_history_is_the_mean_over_the_epochs_steps(tmp_path: Path) -> None:
    losses: list[float] = []

    class Telling(Sums):
        def forward(self, *args: Any) -> Tensor:
            loss = super().forward(*args)
            losses.append(float(loss.detach()))
            return loss

    _, history = run(tmp_path, objective=Telling())
    assert [e.loss for e in history] == pytest.approx(
        [np.mean(losses[i : i + 3]) for i in (0, 3, 6)], rel=1e-5
    )


def test_each_epoch_sees_every_picture_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    objective, _ = run(tmp_path)
    by_epoch = [sum((rows for rows, e, _ in objective.calls if e == n), []) for n in range(3)]
    assert [sorted(rows) for rows in by_epoch] == [list(range(24))] * 3
    assert len({tuple(rows) for rows in by_epoch}) == 3


def test_pictures_that_do_not_fill_a_batch_are_left_to_another_epoch(tmp_path: Path) -> None:
    objective, _ = run(tmp_path, Settings(epochs=8, batch=10))
    assert [len(rows) for rows, _, _ in objective.calls] == [10] * 16
    assert {row for rows, _, _ in objective.calls for row in rows} == set(range(24))


def test_progress_goes_from_nothing_towards_one_in_equal_steps(tmp_path: Path) -> None:
    objective, _ = run(tmp_path)
    assert [p for _, _, p in objective.calls] == pytest.approx(np.arange(9) / 9)


def test_pictures_may_be_memory_mapped(tmp_path: Path) -> None:
    np.save(tmp_path / "pictures.npy", PICTURES)
    mapped = np.load(tmp_path / "pictures.npy", mmap_mode="r", allow_pickle=False)
    assert bits(run(tmp_path / "a", pictures=mapped)[0]) == bits(run(tmp_path / "b")[0])


def test_a_rise_of_exactly_one_step_is_possible(tmp_path: Path) -> None:
    _, history = run(tmp_path, Settings(epochs=2, batch=12, warmup=0.25))
    assert len(history) == 2


@pytest.mark.parametrize("warmup", [0.0, 0.15, 0.5])
def test_the_peak_rate_is_reached_at_the_end_of_the_rise(tmp_path: Path, warmup: float) -> None:
    rates: list[float] = []
    original = torch.optim.AdamW.step

    def step(self: torch.optim.AdamW, *args: Any, **kwargs: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step)
        run(tmp_path, Settings(epochs=10, batch=6, lr=0.1, warmup=warmup))
    assert len(rates) == 40
    assert np.argmax(rates) == max(0, round(40 * warmup) - 1)
    # Without a rise the very first step is already a little way down.
    assert max(rates) == pytest.approx(0.1, rel=1e-2)
    assert rates[-1] < 1e-3


# -- repeatable ---------------------------------------------------------------------------------


def test_one_seed_twice_gives_identical_weights_and_history(tmp_path: Path) -> None:
    one, first = run(tmp_path / "a", objective=Sums(dropout=0.5))
    torch.rand(11)  # whatever else the process drew must not matter
    other, second = run(tmp_path / "b", objective=None if False else _same(one))
    assert bits(one) == bits(other)
    assert judged(first) == judged(second)


def _same(trained: Sums) -> Sums:
    """A fresh objective with the weights that `run` gives every one it makes."""
    del trained
    torch.manual_seed(7)
    return Sums(dropout=0.5)
