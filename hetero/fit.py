"""The one training loop: plain PyTorch under Accelerate, killable anywhere, repeatable to the bit.

Every random number follows from (seed, epoch, step), so a checkpoint needs only weights, optimiser
and where it was. A run continued after SIGKILL ends in the same weights as one left alone.

Started by ``torchrun`` or ``accelerate launch``, each process takes its share of every batch; the
main process validates, decides for all whether to go on, and alone writes files. Shares are equal:
a batch that does not divide by the number of processes is refused, and pictures that do not fill a
batch are left to another epoch.
"""

from __future__ import annotations

import hashlib
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from hetero import _checkpoint, _processes
from hetero._files import write_json
from hetero._mixed import Mixed, mixed
from hetero._processes import any_of, from_main, mean_of
from hetero._shards import Sharded
from hetero.augment import Augment, gather
from hetero.errors import ConfigError, Interrupted, TrainingError
from hetero.progress import Reporter

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
        mixed_precision: What the backbone computes in while it is trained, see `hetero._mixed`.
        shard: Cut the model over the processes, see `hetero._shards`; of one process, leave it.
    """

    epochs: int = 30
    batch: int = 128
    lr: float = 3e-3
    weight_decay: float = 0.05
    warmup: float = 0.15
    seed: int = 0
    augment: Augment = field(default_factory=Augment)
    keep_going: bool = False
    mixed_precision: Mixed = "no"
    shard: bool = False

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        counts = self.epochs >= 1 and self.batch >= 2
        rates = 0 < self.lr < math.inf and 0 <= self.weight_decay < math.inf
        if not (counts and rates and 0 <= self.warmup < 1):
            raise ConfigError(
                "training: epochs at least 1, batch at least 2, lr above 0, weight_decay at least "
                f"0, warmup in 0..1; got epochs={self.epochs}, batch={self.batch}, lr={self.lr}, "
                f"weight_decay={self.weight_decay}, warmup={self.warmup}"
            )
        if self.shard and self.mixed_precision == "fp16":
            raise ConfigError(
                "a sharded model in fp16 would need a loss scale that all processes agree on; "
                "use --mixed-precision bf16"
            )

    def identity(self) -> dict[str, Any]:
        """The settings that bear on the weights: a run may be continued with other ones."""
        # Left out where they are what they were before there was a choice, so that runs of then can
        # be continued.
        later = {"mixed_precision": "no", "shard": False}
        found = asdict(self).items()
        return {k: v for k, v in found if k != "keep_going" and (k, v) not in later.items()}


class Objective(nn.Module):
    """A net, what is learnt beside it, and the loss of a batch; subclasses say which.

    Attributes:
        net: What is kept at the end.
        tables: Views drawn beforehand, seen in turn; none for fresh ones in each epoch.
        partial: Whether a step may leave some parameters without a gradient.
    """

    net: nn.Module
    tables: Sequence[Tensor] = ()
    partial: bool = False

    def draw(self, epoch: int, count: int, generator: torch.Generator, augment: Augment) -> Tensor:
        """The views of all pictures for an epoch, shape (count, augment.WIDTH)."""
        if self.tables:
            return self.tables[epoch % len(self.tables)]
        return augment.draw(count, generator)

    def choose(self) -> None:
        """Draw, before a step, what all processes have to draw alike; by default nothing."""

    def forward(
        self, pixels: Tensor, views: Tensor, rows: Tensor, epoch: int, progress: float
    ) -> Tensor:
        """The loss of one batch: pixels uint8 NHWC, their views, their row numbers."""
        raise NotImplementedError


@dataclass(frozen=True)
class Check:
    """What validation found after an epoch.

    Attributes:
        score: Recall@1 on validation classes, or a classifier's accuracy on validation pictures,
            0..1.
        chance: What a random ranking would score.
        spread: 1 minus the mean cosine between pictures: 0 when all fall on one point; not a number
            where embeddings are not finite.
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
    measure: str = "R@1",
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
        measure: What to call the score: "R@1" of a search, or "accuracy".

    Raises:
        TrainingError: The loss is not finite, embeddings collapsed, or search stays at chance.
        Interrupted: Ctrl-C or SIGTERM; everything up to the last step is saved.
        BundleError: The checkpoint cannot be read.
        ConfigError: The checkpoint belongs to another run, or there are too few pictures.
    """
    _processes.keep_memory()
    accelerator = _processes.accelerator(objective.partial)
    world, me = accelerator.num_processes, accelerator.process_index
    steps = len(pixels) // settings.batch
    if steps < 1 or settings.batch % world or settings.batch // world < 2:
        raise ConfigError(
            f"training: {len(pixels)} pictures do not fill one batch of {settings.batch} over "
            f"{world} processes of at least 2 each; lower --batch"
        )
    shards = Sharded(objective, accelerator.device) if settings.shard and world > 1 else None
    trained = shards.run if shards else objective
    parameters = [p for p in trained.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay)
    schedule = _one_cycle(optimizer, settings, steps * settings.epochs)
    scaler = torch.amp.GradScaler(
        accelerator.device.type, enabled=settings.mixed_precision == "fp16"
    )
    if shards:
        run, moments = trained, shards.state_of(optimizer)
    else:
        objective = objective.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        run, optimizer = accelerator.prepare(objective, optimizer)
        moments = optimizer
    full = {**identity, "settings": settings.identity(), "processes": world}
    kept = _checkpoint.Checkpoint(folder / _checkpoint.NAME, full)
    first, first_step, history, total = 0, 0, [], torch.zeros(())
    if resume and (state := kept.read()) is not None:
        kept.restore(state, objective, moments, schedule)
        if shards:
            shards.scatter()
        if scaler.is_enabled():
            scaler.load_state_dict(state["scaler"])
        first, first_step, total = state["epoch"], state["step"], state["total"]
        history = [Epoch(**row) for row in state["history"]]
        reporter.line(f"{what}: going on at epoch {first + 1}, step {first_step + 1}")

    def save(epoch: int, step: int, total: Tensor) -> None:
        whole = moments.state_dict()  # of shards, put together by all processes
        if shards:
            shards.gather()
        if accelerator.is_main_process:
            kept.write(
                {
                    "objective": objective.state_dict(),
                    "optimizer": whole,
                    "schedule": schedule.state_dict(),
                    "scaler": scaler.state_dict(),
                    "epoch": epoch,
                    "step": step,
                    "total": total,
                    "history": [asdict(row) for row in history],
                }
            )

    before = first * steps + first_step
    with (
        _stop_on_signal() as stopped,
        mixed(trained.net, settings.mixed_precision, accelerator.device),
        reporter.bar(what, settings.epochs * steps, done=before) as bar,
    ):
        for epoch in range(first, settings.epochs):
            generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch)
            order = torch.randperm(len(pixels), generator=generator)
            views = objective.draw(epoch, len(pixels), generator, settings.augment)
            run.train()
            begun = time.monotonic()
            for step in range(first_step, steps):
                rows = order[step * settings.batch : (step + 1) * settings.batch][me::world]
                batch = gather(pixels, rows, views[rows]).to(accelerator.device)
                torch.manual_seed(_seed(settings.seed, epoch, step, 0))
                trained.choose()
                # For a net or a method that draws numbers of its own, dropout for one.
                if me:
                    torch.manual_seed(_seed(settings.seed, epoch, step, me))
                loss = run(
                    batch,
                    views[rows].to(accelerator.device),
                    rows.to(accelerator.device),
                    epoch,
                    (epoch * steps + step) / (settings.epochs * steps),
                )
                optimizer.zero_grad()
                accelerator.backward(scaler.scale(loss))
                scale = scaler.get_scale()
                scaler.step(optimizer)
                scaler.update()
                # A lower scale says that gradients overflowed and nothing was learnt.
                if scaler.get_scale() >= scale:
                    schedule.step()
                total += loss.detach().cpu()
                if not math.isfinite(float(total)):
                    raise TrainingError(
                        f"{what}: the loss became {float(loss.detach())} in epoch {epoch + 1}, "
                        f"step {step + 1}; lower --lr"
                    )
                bar.advance(1)
                if any_of(accelerator, stopped()):
                    save(epoch, step + 1, mean_of(accelerator, total))
                    raise Interrupted(
                        f"{what}: stopped at epoch {epoch + 1}, saved; "
                        "the same command with --resume goes on from here"
                    )
            done_here = (steps - first_step) * settings.batch
            speed = done_here / max(1e-9, time.monotonic() - begun)
            loss_mean = float(mean_of(accelerator, total)) / steps
            first_step, total = 0, torch.zeros(())
            if shards:
                shards.gather()
            found = Check(*from_main(accelerator, lambda: astuple(validate(objective.net)), 3))
            history.append(Epoch(epoch + 1, loss_mean, found.score, speed))
            bar.advance(
                0, f"loss {loss_mean:.3f}  {measure} {found.score:.3f}  {speed:.0f} images/s"
            )
            _watch(what, epoch + 1, (epoch + 1) * steps, settings, found, measure)
            save(epoch + 1, 0, total)
    objective.net.eval()
    if accelerator.is_main_process:
        write_json(folder / "history.json", {"epochs": [asdict(row) for row in history]})
    return tuple(history)


def _seed(*parts: int) -> int:
    """A seed for exactly these numbers."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8]) >> 1


def _one_cycle(
    optimizer: torch.optim.Optimizer, settings: Settings, steps: int
) -> torch.optim.lr_scheduler.OneCycleLR:
    rise = settings.warmup or 1e-9
    if rise * steps == 1:  # PyTorch divides by the length of the rise, less one step
        rise *= 1 + 1e-6
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.lr, total_steps=steps, pct_start=rise
    )


def _watch(
    what: str, epoch: int, steps: int, settings: Settings, found: Check, measure: str
) -> None:
    """Stops a run that cannot end well, early enough to save its user the wait."""
    if not math.isfinite(found.spread):
        raise TrainingError(
            f"{what}: after epoch {epoch} embeddings are not finite; the run diverged: lower --lr"
        )
    # Batch norm's running statistics need some tens of steps before evaluation mode means anything.
    if found.spread < 1e-3 and steps >= SETTLED_STEPS:
        raise TrainingError(
            f"{what}: after epoch {epoch} all embeddings fall on one point (mean cosine "
            f"{1 - found.spread:.4f}); the run collapsed: lower --lr or change the method"
        )
    # A tenth of the schedule is warm-up; three epochs are needed to see anything on few pictures.
    enough = epoch >= max(3, math.ceil(0.25 * settings.epochs)) and steps >= SETTLED_STEPS
    # Twice chance; where chance is high, a tenth of the way up from it, if there is a way up.
    low = min(2 * found.chance, found.chance + (1 - found.chance) / 10)
    at_chance = found.chance < 1 and found.score <= low
    if enough and at_chance and not settings.keep_going:
        level = f"({measure} {found.score:.4f}, chance {found.chance:.4f})"
        raise TrainingError(
            f"{what}: after {epoch} epochs "
            + (
                f"search is at chance {level}; the method or the data does not lead into the "
                "gallery's space. "
                if measure == "R@1"
                else f"it is at chance {level}; nothing is learnt from these pictures. "
            )
            + "Use --keep-going to train on regardless"
        )


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
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
