from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toys import Listener, Tripwire, quiet

from hetero.errors import BundleError, ConfigError, HeteroError, Interrupted, TrainingError
from hetero.fit import SETTLED_STEPS, Check, Epoch, Objective, Settings, fit
from hetero.progress import Reporter

PICTURES = np.random.default_rng(0).integers(0, 256, (24, 2, 2, 3), dtype=np.uint8)
WELL = Check(score=0.9, chance=0.1, spread=0.5)
IDENTITY = {"data": "abc", "recipe": {"backbone": "x", "dim": 4}}


class Sums(Objective):
    """Learns the mean of a picture's bytes; keeps what it was called with, and its losses."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Dropout(dropout), nn.Linear(12, 1))
        self.calls: list[tuple[list[int], int, float]] = []
        self.losses: list[float] = []

    def forward(
        self, pixels: Tensor, views: Tensor, rows: Tensor, epoch: int, progress: float
    ) -> Tensor:
        self.calls.append((rows.tolist(), epoch, progress))
        x = pixels.flatten(1).float() / 255
        # The views matter too, so that a run that draws others is found out.
        wanted = x.mean(1, keepdim=True) + 0.01 * views[:, :1]
        loss = ((self.net(x) - wanted) ** 2).mean()
        self.losses.append(float(loss.detach()))
        return loss


def with_dropout() -> Sums:
    return Sums(dropout=0.5)


def run(
    folder: Path,
    settings: Settings | None = None,
    *,
    make: Callable[[], Sums] = Sums,
    found: Check | Callable[[nn.Module], Check] = WELL,
    reporter: Reporter | None = None,
    resume: bool = False,
    identity: dict[str, Any] | None = None,
    pictures: np.ndarray = PICTURES,
) -> tuple[Sums, tuple[Epoch, ...]]:
    torch.manual_seed(7)
    objective = make()
    torch.rand(np.random.default_rng().integers(1, 99))  # what else was drawn must not matter
    history = fit(
        objective,
        pictures,
        settings or Settings(epochs=3, batch=8),
        folder=folder,
        identity=identity or IDENTITY,
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


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


# -- what it does -------------------------------------------------------------------------------


def test_a_run_learns_and_its_history_is_on_disk(tmp_path: Path) -> None:
    _, history = run(tmp_path, Settings(epochs=30, batch=8, lr=0.05))
    assert history[-1].loss < history[0].loss / 10
    assert [e.epoch for e in history] == list(range(1, 31))
    assert all(e.score == WELL.score and e.images_per_s > 0 for e in history)
    stored = json.loads((tmp_path / "history.json").read_text())["epochs"]
    assert tuple(Epoch(**row) for row in stored) == history


def test_the_loss_in_the_history_is_the_mean_over_the_steps_of_the_epoch(tmp_path: Path) -> None:
    objective, history = run(tmp_path)
    steps = np.asarray(objective.losses).reshape(3, 3)
    assert [e.loss for e in history] == pytest.approx(steps.mean(1), rel=1e-5)


def test_each_epoch_sees_every_picture_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    objective, _ = run(tmp_path)
    by_epoch = [[r for rows, e, _ in objective.calls if e == n for r in rows] for n in range(3)]
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


def test_the_net_is_left_in_evaluation_mode_after_training_in_training_mode(tmp_path: Path) -> None:
    modes: list[bool] = []

    def found(net: nn.Module) -> Check:
        modes.append(net.training)
        return WELL

    objective, _ = run(tmp_path, found=found)
    assert modes == [True] * 3
    assert not objective.net.training


def test_a_rise_of_exactly_one_step_is_possible(tmp_path: Path) -> None:
    _, history = run(tmp_path, Settings(epochs=2, batch=12, warmup=0.25))
    assert len(history) == 2


@pytest.mark.parametrize("warmup", [0.0, 0.15, 0.5])
def test_the_peak_rate_is_reached_at_the_end_of_the_rise(
    tmp_path: Path, warmup: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    original = torch.optim.AdamW.step

    def step(self: torch.optim.AdamW, *args: Any, **kwargs: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    run(tmp_path, Settings(epochs=10, batch=6, lr=0.1, warmup=warmup))
    assert len(rates) == 40
    assert np.argmax(rates) == max(0, round(40 * warmup) - 1)
    assert max(rates) == pytest.approx(0.1, rel=1e-2)
    assert rates[-1] < 1e-3


def test_progress_is_announced_in_steps(tmp_path: Path) -> None:
    listener = Listener()
    run(tmp_path, reporter=listener)
    assert listener.jobs == {"train": [9, 9]}


# -- repeatable ---------------------------------------------------------------------------------


def test_one_seed_twice_gives_identical_weights_and_history(tmp_path: Path) -> None:
    one, first = run(tmp_path / "a", make=with_dropout)
    other, second = run(tmp_path / "b", make=with_dropout)
    assert bits(one) == bits(other)
    assert judged(first) == judged(second)


def test_another_seed_gives_another_order_and_other_weights(tmp_path: Path) -> None:
    one, _ = run(tmp_path / "a")
    other, _ = run(tmp_path / "b", Settings(epochs=3, batch=8, seed=1))
    assert [c[0] for c in one.calls] != [c[0] for c in other.calls]
    assert bits(one) != bits(other)


@pytest.mark.parametrize("after", [1, 3, 4, 8])
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_run_stopped_by_a_signal_goes_on_to_the_same_bits(
    tmp_path: Path, after: int, kind: signal.Signals
) -> None:
    whole, history = run(tmp_path / "whole", make=with_dropout)
    stop = Tripwire("train", after, lambda: signal.raise_signal(kind))
    with pytest.raises(Interrupted, match=r"--resume") as caught:
        run(tmp_path / "cut", make=with_dropout, reporter=stop)
    assert caught.value.exit_code == 130
    listener = Listener()
    again, resumed = run(tmp_path / "cut", make=with_dropout, resume=True, reporter=listener)
    assert bits(again) == bits(whole)
    assert judged(resumed) == judged(history)
    assert [c[:2] for c in again.calls] == [c[:2] for c in whole.calls[after:]]
    assert listener.jobs == {"train": [9, 9]}
    assert "going on at epoch" in listener.lines[0]


def test_a_run_stopped_twice_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole, history = run(tmp_path / "whole")
    for after in (2, 3):
        with pytest.raises(Interrupted):
            run(tmp_path / "cut", reporter=Tripwire("train", after, interrupt), resume=True)
    again, resumed = run(tmp_path / "cut", resume=True)
    assert bits(again) == bits(whole)
    assert judged(resumed) == judged(history)


def test_a_run_that_died_goes_on_from_the_last_whole_epoch(tmp_path: Path) -> None:
    whole, history = run(tmp_path / "whole", make=with_dropout)

    def die() -> None:
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        run(tmp_path / "cut", make=with_dropout, reporter=Tripwire("train", 5, die))
    again, resumed = run(tmp_path / "cut", make=with_dropout, resume=True)
    assert len(again.calls) == 6
    assert bits(again) == bits(whole)
    assert judged(resumed) == judged(history)


def test_a_finished_run_that_is_resumed_trains_no_more(tmp_path: Path) -> None:
    whole, history = run(tmp_path)
    again, resumed = run(tmp_path, resume=True)
    assert again.calls == []
    assert bits(again) == bits(whole)
    assert resumed == history


def test_without_resume_a_checkpoint_is_not_looked_at(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"torn")
    objective, _ = run(tmp_path)
    assert len(objective.calls) == 9


def test_resuming_where_nothing_was_begun_starts_from_the_beginning(tmp_path: Path) -> None:
    objective, _ = run(tmp_path, resume=True)
    assert len(objective.calls) == 9


# -- stopping -----------------------------------------------------------------------------------


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    def twice() -> None:
        interrupt()
        interrupt()

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, reporter=Tripwire("train", 2, twice))


@pytest.mark.parametrize("after", [4, 99])
def test_signal_handlers_are_put_back(tmp_path: Path, after: int) -> None:
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    try:
        run(tmp_path, reporter=Tripwire("train", after, interrupt))
    except Interrupted:
        assert after == 4
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_run_outside_the_main_thread_leaves_signals_alone(tmp_path: Path) -> None:
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(run(tmp_path)))
    thread.start()
    thread.join()
    assert len(got[0][1]) == 3


# -- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("named", "identity", "settings"),
    [
        ("data", {**IDENTITY, "data": "xyz"}, {}),
        ("recipe.dim", {**IDENTITY, "recipe": {"backbone": "x", "dim": 5}}, {}),
        ("parent", {**IDENTITY, "parent": "g"}, {}),
        ("settings.lr", IDENTITY, {"lr": 0.5}),
        ("settings.epochs", IDENTITY, {"epochs": 4}),
        ("settings.seed", IDENTITY, {"seed": 9}),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_naming_what_differs(
    tmp_path: Path, named: str, identity: dict[str, Any], settings: dict[str, Any]
) -> None:
    run(tmp_path)
    changed = replace(Settings(epochs=3, batch=8), **settings)
    with pytest.raises(ConfigError, match="belongs to another run") as caught:
        run(tmp_path, changed, identity=identity, resume=True)
    assert f"differs in {named};" in str(caught.value)
    assert_one_line(caught.value)


def test_a_run_stopped_at_chance_may_be_continued_with_keep_going(tmp_path: Path) -> None:
    at_chance = Check(score=0.1, chance=0.1, spread=0.5)
    settings = Settings(epochs=6, batch=2)
    with pytest.raises(TrainingError, match="--keep-going"):
        run(tmp_path, settings, found=at_chance)
    _, history = run(tmp_path, replace(settings, keep_going=True), found=at_chance, resume=True)
    assert len(history) == 6


def damage_nothing(path: Path) -> None:
    path.write_bytes(b"")


def damage_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_noise(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(5000))


def damage_content(path: Path) -> None:
    torch.save({"other": 1}, path)


def damage_list(path: Path) -> None:
    torch.save([1, 2], path)


@pytest.mark.parametrize(
    "damage",
    [damage_nothing, damage_half, damage_noise, damage_content, damage_list],
)
def test_a_damaged_checkpoint_gives_one_clear_line(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    run(tmp_path)
    damage(tmp_path / "checkpoint.pt")
    with pytest.raises(BundleError, match=r"checkpoint\.pt.*without --resume") as caught:
        run(tmp_path, resume=True)
    assert_one_line(caught.value)


class Bomb:
    """Runs a command in whoever unpickles it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self._path),)


@pytest.mark.parametrize("write", ["torch", "pickle"])
def test_a_checkpoint_that_would_run_code_is_refused_and_runs_none(
    tmp_path: Path, write: str
) -> None:
    run(tmp_path)
    bomb, path = Bomb(tmp_path / "ran"), tmp_path / "checkpoint.pt"
    if write == "torch":
        torch.save({"identity": bomb}, path)
    else:
        path.write_bytes(pickle.dumps({"identity": bomb}))
    with pytest.raises(BundleError):
        run(tmp_path, resume=True)
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_of_a_model_whose_code_changed_is_refused(tmp_path: Path) -> None:
    class Wider(Sums):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(12, 2), nn.Linear(2, 1))

    run(tmp_path)
    with pytest.raises(BundleError, match="as its code is now") as caught:
        run(tmp_path, make=Wider, resume=True)
    assert_one_line(caught.value)


@pytest.mark.parametrize("batch", [25, 1000])
def test_a_batch_larger_than_the_data_is_refused(tmp_path: Path, batch: int) -> None:
    with pytest.raises(ConfigError, match=f"24 pictures do not fill one batch of {batch}"):
        run(tmp_path, Settings(batch=batch))


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"batch": 1},
        {"lr": 0.0},
        {"lr": -1.0},
        {"lr": float("nan")},
        {"lr": float("inf")},
        {"warmup": 1.0},
        {"warmup": -0.1},
        {"weight_decay": -1.0},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ConfigError, match=f"{name}="):
        Settings(**wrong)


def assert_one_line(error: HeteroError) -> None:
    assert "\n" not in str(error)
    assert len(str(error)) < 500


# -- runs that cannot end well ------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_the_run_at_that_step(tmp_path: Path) -> None:
    class Bursting(Sums):
        def forward(self, *args: Any) -> Tensor:
            loss = super().forward(*args)
            return loss * float("inf") if len(self.calls) == 5 else loss

    with pytest.raises(TrainingError, match=r"became inf in epoch 2, step 2; lower --lr"):
        run(tmp_path, make=Bursting)


def test_embeddings_that_are_not_finite_stop_the_run(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"after epoch 1 embeddings are not finite"):
        run(tmp_path, found=Check(0.0, 0.0, float("nan")))


@pytest.mark.parametrize("keep_going", [False, True])
def test_a_collapse_stops_the_run_and_says_so(tmp_path: Path, keep_going: bool) -> None:
    collapsed = Check(score=0.9, chance=0.1, spread=1e-5)
    settings = Settings(epochs=9, batch=2, keep_going=keep_going)
    with pytest.raises(TrainingError, match=r"fall on one point.*collapsed"):
        run(tmp_path, settings, found=collapsed)


def test_nothing_is_concluded_while_batch_statistics_settle(tmp_path: Path) -> None:
    hopeless = Check(score=0.0, chance=0.1, spread=0.0)
    few = Settings(epochs=(SETTLED_STEPS - 1) // 3, batch=8)
    assert len(run(tmp_path / "few", few, found=hopeless)[1]) == few.epochs
    with pytest.raises(TrainingError):
        run(tmp_path / "more", replace(few, epochs=few.epochs + 1), found=hopeless)


@pytest.mark.parametrize("chance", [0.001, 0.1, 0.3, 0.5, 0.9])
def test_a_search_at_chance_stops_the_run_with_an_explanation(
    tmp_path: Path, chance: float
) -> None:
    settings = Settings(epochs=6, batch=2)
    with pytest.raises(TrainingError, match=r"after 5 epochs search is at chance.*--keep-going"):
        run(tmp_path, settings, found=Check(chance, chance, 0.5))


@pytest.mark.parametrize("chance", [0.001, 0.1, 0.3, 0.5, 0.9, 1.0])
def test_a_search_that_finds_everything_is_never_at_chance(tmp_path: Path, chance: float) -> None:
    # With one class, or two, to watch chance is high; that says nothing against the run.
    _, history = run(tmp_path, Settings(epochs=6, batch=2), found=Check(1.0, chance, 0.5))
    assert len(history) == 6


def test_keep_going_lets_a_run_at_chance_end(tmp_path: Path) -> None:
    settings = Settings(epochs=6, batch=2, keep_going=True)
    assert len(run(tmp_path, settings, found=Check(0.1, 0.1, 0.5))[1]) == 6


def test_a_long_run_is_given_a_quarter_of_its_epochs_to_rise_above_chance(tmp_path: Path) -> None:
    seen: list[int] = []

    def found(net: nn.Module) -> Check:
        seen.append(1)
        return Check(0.1 if len(seen) < 6 else 0.9, 0.1, 0.5)

    _, history = run(tmp_path, Settings(epochs=24, batch=2), found=found)
    assert len(history) == 24


def test_every_message_is_one_line(tmp_path: Path) -> None:
    for number, found in enumerate((Check(0.1, 0.1, 0.5), Check(0.9, 0.1, 0.0))):
        with pytest.raises(TrainingError) as caught:
            run(tmp_path / str(number), Settings(epochs=6, batch=2), found=found)
        assert caught.value.exit_code == 1
        assert_one_line(caught.value)


@pytest.mark.skipif(sys.platform != "linux", reason="page faults are counted on Linux")
def test_memory_that_a_step_freed_is_there_for_the_next_without_page_faults() -> None:
    code = """
import resource, sys, torch
from hetero import _processes
if sys.argv[1] == "kept":
    _processes.keep_memory()
def step():
    a = [torch.ones(2**21) for _ in range(8)]  # 8 MiB each
    return sum(float(x[0]) for x in a)
step(); step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = {
        how: int(
            subprocess.run(
                [sys.executable, "-c", code, how], capture_output=True, text=True, check=True
            ).stdout
        )
        for how in ("kept", "plain")
    }
    if faults["plain"] < 10_000:
        pytest.skip("this C library keeps memory by itself")
    assert faults["kept"] < faults["plain"] / 4
