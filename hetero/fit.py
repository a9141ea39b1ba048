"""The one training loop: plain PyTorch under Accelerate, killable at any moment, repeatable to the bit.

Every random number follows from (seed, epoch), so a checkpoint needs only weights, optimiser and where it
was. A run continued after SIGKILL ends in the same weights as one that was left alone.
"""

from __future__ import annotations

import io
import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from hetero._files import canonical_json, write_atomically, write_json
from hetero.augment import Augment
from hetero.errors import BundleError, ConfigError, Interrupted, TrainingError, require
from hetero.progress import Reporter

CHECKPOINT = "checkpoint.pt"

#: Steps before which nothing is concluded from a model in evaluation mode.
SETTLED_STEPS = 50


@dataclass(frozen=True)
class Settings:
    """How a model is trained.

    Attributes:
        epochs: Passes over the training pictures.
        batch: Pictures a step, over all processes.
        lr: Peak learning rate of AdamW on a one-cycle schedule.
        weight_decay: Of AdamW.
        warmup: Share of the steps in which the rate rises.
        seed: Of weights, order and augmentation.
        augment: The views training sees.
        keep_going: Do not stop a run that stays at chance (negative controls do).
    """

    epochs: int = 30
    batch: int = 128
    lr: float = 3e-3
    weight_decay: float = 0.05
    warmup: float = 0.15
    seed: int = 0
    augment: Augment = field(default_factory=Augment)
    keep_going: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 2 or self.lr <= 0 or not 0 <= self.warmup < 1:
            raise ConfigError(
                "training: epochs at least 1, batch at least 2, lr above 0, warmup in 0..1; got "
                f"epochs={self.epochs}, batch={self.batch}, lr={self.lr}, warmup={self.warmup}"
            )


class Objective(nn.Module):
    """A net, what is learnt beside it, and the loss of a batch; subclasses say which.

    Attributes:
        net: What is kept at the end.
    """

    net: nn.Module

    def draw(self, epoch: int, count: int, generator: torch.Generator, augment: Augment) -> Tensor:
        """The views of all pictures for an epoch, shape (count, augment.WIDTH)."""
        return augment.draw(count, generator)

    def forward(
        self, pixels: Tensor, views: Tensor, rows: Tensor, epoch: int, progress: float
    ) -> Tensor:
        """The loss of one batch: pixels uint8 NHWC, their views, their row numbers."""
        raise NotImplementedError


@dataclass(frozen=True)
class Check:
    """What validation found after an epoch.

    Attributes:
        score: Recall@1 on validation classes, 0..1.
        chance: What a random ranking would score.
        spread: 1 minus the mean cosine between pictures: 0 when all fall on one point.
    """

    score: float
    chance: float
    spread: float


@dataclass(frozen=True)
class Epoch:
    """One line of a run's history."""

    epoch: int
    loss: float
    score: float
    images_per_s: float


def fit(
    objective: Objective,
    pixels: UInt8[np.ndarray, "n s s 3"],
    settings: Settings,
    *,
    folder: Path,
    identity: dict[str, Any],
    validate: Callable[[nn.Module], Check],
    resume: bool,
    reporter: Reporter,
    what: str,
) -> tuple[Epoch, ...]:
    """The history of a run; `objective.net` holds the trained weights when it returns.

    Args:
        objective: Net and loss.
        pixels: All training pictures at input size; may be memory-mapped.
        settings: How to train.
        folder: For checkpoint.pt and history.json.
        identity: What the run is (data, model, method); a checkpoint of another run is refused.
        validate: Scores the net after each epoch.
        resume: Continue from the folder's checkpoint, if there is one.
        reporter: Shows loss, score, speed and time left.
        what: What to call the run there.

    Raises:
        TrainingError: The loss is not finite, embeddings collapsed, or search stays at chance.
        Interrupted: Ctrl-C or SIGTERM; everything up to the last step is saved.
        BundleError: The checkpoint cannot be read.
        ConfigError: The checkpoint belongs to another run, or there are too few pictures.
    """
    accelerator = require("accelerate", "train").Accelerator()
    world, me = accelerator.num_processes, accelerator.process_index
    steps = len(pixels) // settings.batch
    if steps < 1 or settings.batch % world or settings.batch // world < 2:
        raise ConfigError(
            f"training: {len(pixels)} pictures do not fill one batch of {settings.batch} over "
            f"{world} processes of at least 2 each; lower --batch"
        )
    parameters = [p for p in objective.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.lr, total_steps=steps * settings.epochs, pct_start=settings.warmup or 1e-9
    )
    objective = objective.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    full = {**identity, "settings": asdict(settings)}
    run, optimizer = accelerator.prepare(objective, optimizer)
    kept = _Checkpoint(folder / CHECKPOINT, full)
    first, first_step, history = 0, 0, []
    if resume and (state := kept.read()) is not None:
        objective.load_state_dict(state["objective"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        first, first_step = state["epoch"], state["step"]
        history = [Epoch(**row) for row in state["history"]]
        reporter.line(f"{what}: going on at epoch {first + 1}, step {first_step + 1}")

    def save(epoch: int, step: int) -> None:
        if accelerator.is_main_process:
            kept.write(
                {
                    "objective": objective.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "schedule": schedule.state_dict(),
                    "epoch": epoch,
                    "step": step,
                    "history": [asdict(row) for row in history],
                }
            )

    with _stop_on_signal() as stopped, reporter.bar(what, settings.epochs * steps) as bar:
        bar.advance(first * steps + first_step)
        for epoch in range(first, settings.epochs):
            generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch)
            order = torch.randperm(len(pixels), generator=generator)
            views = objective.draw(epoch, len(pixels), generator, settings.augment)
            run.train()
            begun, done, total = time.monotonic(), 0, torch.zeros(())
            for step in range(first_step, steps):
                rows = order[step * settings.batch : (step + 1) * settings.batch][me::world]
                batch = torch.from_numpy(pixels[rows.numpy()]).to(accelerator.device)
                progress = (epoch * steps + step) / (settings.epochs * steps)
                loss = run(
                    batch,
                    views[rows].to(accelerator.device),
                    rows.to(accelerator.device),
                    epoch,
                    progress,
                )
                optimizer.zero_grad()
                accelerator.backward(loss)
                optimizer.step()
                schedule.step()
                total += loss.detach().cpu()
                done += 1
                bar.advance(1)
                if stopped():
                    save(epoch, step + 1)
                    raise Interrupted(
                        f"{what}: stopped at epoch {epoch + 1}, saved; "
                        "the same command with --resume goes on from here"
                    )
            speed = done * settings.batch / (time.monotonic() - begun) if done else 0.0
            mean_loss, first_step = float(total / max(1, done)), 0
            if not math.isfinite(mean_loss):
                raise TrainingError(
                    f"{what}: the loss became {mean_loss} in epoch {epoch + 1}; lower --lr"
                )
            found = validate(objective.net)
            history.append(Epoch(epoch + 1, mean_loss, found.score, speed))
            bar.advance(0, f"loss {mean_loss:.3f}  R@1 {found.score:.3f}  {speed:.0f} images/s")
            _watch(what, epoch + 1, (epoch + 1) * steps, settings, found)
            save(epoch + 1, 0)
    objective.net.eval()
    if accelerator.is_main_process:
        write_json(folder / "history.json", {"epochs": [asdict(row) for row in history]})
    return tuple(history)


def _watch(what: str, epoch: int, steps: int, settings: Settings, found: Check) -> None:
    """Stops a run that cannot end well, early enough to save its user the wait."""
    # Batch norm's running statistics need some tens of steps before evaluation mode means anything.
    if found.spread < 1e-3 and steps >= SETTLED_STEPS:
        raise TrainingError(
            f"{what}: after epoch {epoch} all embeddings fall on one point (mean cosine "
            f"{1 - found.spread:.4f}); the run collapsed: lower --lr or change the method"
        )
    # A tenth of the schedule is warm-up; three epochs are needed to see anything on few pictures.
    enough = epoch >= max(3, math.ceil(0.25 * settings.epochs)) and steps >= SETTLED_STEPS
    if enough and found.score <= 2 * found.chance and not settings.keep_going:
        raise TrainingError(
            f"{what}: after {epoch} epochs search is at chance (R@1 {found.score:.4f}, chance "
            f"{found.chance:.4f}); the method or the data does not lead into the gallery's space. "
            "Use --keep-going to train on regardless"
        )


class _Checkpoint:
    """A file that holds a run's state, and the identity of the run it belongs to."""

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self._path, self._identity = path, identity

    def write(self, state: dict[str, Any]) -> None:
        buffer = io.BytesIO()
        torch.save({**state, "identity": canonical_json(self._identity)}, buffer)
        write_atomically(self._path, buffer.getvalue())

    def read(self) -> dict[str, Any] | None:
        if not self._path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(self._path, weights_only=True)
            theirs = json.loads(state["identity"])
        except Exception as error:  # torch.load raises whatever the damage made of the bytes
            raise BundleError(
                f"{self._path}: the checkpoint cannot be read ({type(error).__name__}); "
                "run without --resume to start over"
            ) from error
        ours = json.loads(canonical_json(self._identity))
        differing = sorted(k for k in {*ours, *theirs} if ours.get(k) != theirs.get(k))
        if differing:
            raise ConfigError(
                f"{self._path}: the checkpoint belongs to another run, it differs in "
                f"{', '.join(differing)}; use the same arguments, or run without --resume"
            )
        return state


@contextmanager
def _stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Asks, after each step, whether Ctrl-C or SIGTERM came; a second Ctrl-C stops at once."""
    asked: list[int] = []

    def ask(number: int, frame: object) -> None:
        asked.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    try:
        before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals belong to whoever runs there
        before = {}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
