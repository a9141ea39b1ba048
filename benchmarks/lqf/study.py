"""What is trained and measured: one cell is one number of samples a class and one seed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hetero import data, lqf, models
from hetero.augment import Augment
from hetero.bundle import Bundle
from hetero.data import Images
from hetero.fit import Settings
from hetero.lqf.probe import ridge
from hetero.preprocess import Preprocess
from hetero.progress import Reporter
from hetero.train import GalleryRecipe, train_gallery

#: What one-hot labels are multiplied by; fine-tuning's cross-entropy wants smaller logits.
ALPHA, LOGITS = 15.0, 5.0

PENALTIES = (1e-2, 1e-1, 1.0, 10.0)

#: Fine-tuning: where its head comes from, and the peak rate of SGD with momentum 0.9.
TUNED = (("new", 3e-3), ("new", 1e-2), ("probe", 1e-3), ("probe", 3e-3))

#: LQF: share of the best step, and weight of the pull to the base.
LINEAR = ((1.0, 1e-2), (0.3, 1e-2))

#: Rates of the two optimisers on the same quadratic.
RATES: Mapping[str, tuple[float, ...]] = {"kfac": (0.5, 1.0), "adam": (1e-3, 3e-3, 1e-2)}


@dataclass(frozen=True)
class Size:
    """How much is done.

    Attributes:
        name: "full" or "quick".
        backbone: Leaky.
        size_px: Input side.
        pretrain: Pictures a class of the classes that the backbone is trained on.
        epochs: Of that training.
        samples: Pictures a class to adapt with.
        seeds: Of pre-training, samples and order.
        steps: Of fine-tuning, for the fewest and for the most samples.
        linear_steps: Of LQF, likewise.
        tested: Test pictures a class.
        optimum: Steps of K-FAC to the optimum.
        race: Steps that each optimiser gets to reach it.
        racing: Samples a class of the race and of the two seeds.
    """

    name: str
    backbone: str
    size_px: int
    pretrain: int
    epochs: int
    samples: tuple[int, ...]
    seeds: tuple[int, ...]
    steps: tuple[int, int]
    linear_steps: tuple[int, int]
    tested: int
    optimum: int
    race: int
    racing: int


FULL = Size(
    name="full",
    backbone="leaky:resnet:width=8",
    size_px=32,
    pretrain=3000,
    epochs=12,
    samples=(5, 10, 20, 50, 100, 500),
    seeds=(0, 1, 2),
    steps=(120, 600),
    linear_steps=(25, 160),
    tested=1000,
    optimum=400,
    race=200,
    racing=20,
)
QUICK = Size(
    name="quick",
    backbone="leaky:resnet:width=4",
    size_px=16,
    pretrain=120,
    epochs=3,
    samples=(5, 20),
    seeds=(0,),
    steps=(10, 20),
    linear_steps=(5, 10),
    tested=50,
    optimum=160,
    race=30,
    racing=5,
)
#: Of each adapted class so many training pictures are for choosing settings, and for nothing else.
VALIDATION = 100


@dataclass(frozen=True, eq=False)
class Part:
    """Pictures as the backbone takes them, and their class numbers."""

    x: Tensor
    y: Tensor


class Study:
    """A collection in which half of the classes are pre-trained on and the others adapted to."""

    def __init__(self, size: Size, spec: str, work: Path) -> None:
        self.size, self.work = size, work
        self.images = data.load(spec)
        classes = sorted(set(self.images.labels))
        # Every other one, so that both halves have animals and vehicles.
        self.known, self.new = classes[::2], classes[1::2]
        self.preprocess = Preprocess(size.size_px)

    # -- pictures -----------------------------------------------------------------------------

    def rows(self, part: str, label: str) -> list[int]:
        """Row numbers of the official part of a class, in the collection's order."""
        images = self.images
        return [
            r
            for r, (name, of) in enumerate(zip(images.ids, images.labels, strict=True))
            if of == label and name.startswith(f"{part}/")
        ]

    def part(self, rows: list[list[int]]) -> Part:
        """Pictures of the new classes, a list of row numbers for each."""
        pixels = self.images.pixels([r for some in rows for r in some], self.preprocess)
        x = torch.from_numpy(np.ascontiguousarray(self.preprocess.tensor(pixels)))
        counts = torch.tensor([len(some) for some in rows])
        return Part(x, torch.arange(len(rows)).repeat_interleave(counts))

    def sample(self, count: int, seed: int) -> Part:
        """So many training pictures of each new class; none that settings are chosen by."""
        rng = np.random.default_rng([seed, count])
        found = []
        for label in self.new:
            rows = self.rows("train", label)[VALIDATION:]
            found.append([rows[i] for i in rng.permutation(len(rows))[:count]])
        return self.part(found)

    def validation(self) -> Part:
        """The pictures that settings are chosen by."""
        return self.part([self.rows("train", label)[:VALIDATION] for label in self.new])

    def test(self) -> Part:
        """The official test pictures of the new classes."""
        return self.part([self.rows("test", label)[: self.size.tested] for label in self.new])

    # -- models -------------------------------------------------------------------------------

    def bundle(self, seed: int) -> Bundle:
        """The gallery model trained on the known classes, from the disk if it is there."""
        size, images = self.size, self.images
        kept = {label: self.rows("train", label)[: size.pretrain] for label in self.known}
        # Training wants classes to watch; they are new ones and nothing is chosen by them.
        watched = {label: self.rows("train", label)[:VALIDATION] for label in self.new[:2]}
        rows = [r for some in (*kept.values(), *watched.values()) for r in some]
        few = Images(
            name=f"{images.name} (half of the classes)",
            ids=tuple(images.ids[r] for r in rows),
            labels=tuple(images.labels[r] for r in rows),
            groups=tuple(images.groups[r] for r in rows),
            splits=tuple("train" if images.labels[r] in kept else "val" for r in rows),
            roles=("both",) * len(rows),
            read=lambda at: images.read(rows[at]),
        )
        return train_gallery(
            few,
            GalleryRecipe(size.backbone, 64),
            self.preprocess,
            Settings(epochs=size.epochs, seed=seed, keep_going=True, augment=Augment()),
            self.work / f"gallery-{size.name}-{seed}",
            resume=True,
            reporter=Reporter(quiet=True),
        )


def features(net: nn.Module, x: Tensor) -> Tensor:
    """What a net gives for all pictures."""
    with torch.no_grad():
        return torch.cat([net(some) for some in x.split(250)])


def accuracy(net: nn.Module, part: Part) -> float:
    """Share of pictures named rightly, 0..1."""
    return float((features(net, part.x).argmax(1) == part.y).float().mean())


def between(few: int, many: int, count: int, samples: tuple[int, ...]) -> int:
    """Steps for this many samples: those of the fewest, growing in proportion to the most's."""
    share = (count - samples[0]) / max(1, samples[-1] - samples[0])
    return round(few + (many - few) * share**0.5)


def fine_tuned(
    bundle: Bundle, head: dict[str, Tensor], train: Part, lr: float, steps: int, seed: int
) -> nn.Module:
    """Cross-entropy on all weights of convolutions and linear layers; batch norms stay as they are.

    The same parameters that LQF changes, with the same batches of 64.
    """
    net = lqf.base(bundle, head)
    weights = [
        p
        for m in net.modules()
        if isinstance(m, nn.Conv2d | nn.Linear)
        for p in m.parameters(recurse=False)
    ]
    optimizer = torch.optim.SGD(weights, lr, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randperm(len(train.x), generator=generator)[:64]
        loss = nn.functional.cross_entropy(net(train.x[rows]), train.y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net


def new_head(outputs: int, width: int, seed: int) -> dict[str, Tensor]:
    """A linear layer as PyTorch begins one."""
    torch.manual_seed(seed)
    return {k: v.detach() for k, v in nn.Linear(width, outputs).state_dict().items()}


def cell(study: Study, count: int, seed: int, validation: Part, test: Part) -> dict[str, Any]:
    """Accuracy of probe, fine-tuning and LQF, each at its best settings by validation pictures."""
    size, bundle = study.size, study.bundle(seed)
    train, outputs = study.sample(count, seed), len(study.new)
    backbone = models.load(bundle).backbone
    seen = features(backbone, train.x)
    out: dict[str, Any] = {"samples": count, "seed": seed}

    def best(tried: list[tuple[dict[str, Any], nn.Module]], begun: float) -> dict[str, Any]:
        """The test score of the one with the best validation score, and all validation scores."""
        scored = [{**how, "validation": accuracy(net, validation)} for how, net in tried]
        at = max(range(len(scored)), key=lambda i: scored[i]["validation"])
        return {
            "test": accuracy(tried[at][1], test),
            "chosen": scored[at],
            "tried": scored,
            "cpu_s": round(time.process_time() - begun, 1),
        }

    begun = time.process_time()
    heads = {p: ridge(seen, train.y, outputs, alpha=ALPHA, penalty=p) for p in PENALTIES}
    out["probe"] = best(
        [({"penalty": p}, lqf.base(bundle, head)) for p, head in heads.items()], begun
    )
    penalty = out["probe"]["chosen"]["penalty"]

    begun, tuned = time.process_time(), []
    steps = between(*size.steps, count, size.samples)
    for kind, lr in TUNED:
        head = (
            new_head(outputs, seen.shape[1], seed)
            if kind == "new"
            else ridge(seen, train.y, outputs, alpha=LOGITS, penalty=penalty)
        )
        how = {"head": kind, "lr": lr, "steps": steps}
        tuned.append((how, fine_tuned(bundle, head, train, lr, steps, seed)))
    out["fine_tuning"] = best(tuned, begun)

    begun, linear = time.process_time(), []
    batches = -(-len(train.x) // 64)
    epochs = max(1, round(between(*size.linear_steps, count, size.samples) / batches))
    for lr, pull in LINEAR:
        model = lqf.DualStream(lqf.base(bundle, heads[penalty]), train.x[:2])
        settings = lqf.Settings(epochs=epochs, lr=lr, alpha=ALPHA, pull=pull, seed=seed)
        lqf.fit(model, train.x, train.y, settings, reporter=Reporter(quiet=True))
        linear.append(({"lr": lr, "pull": pull, "steps": epochs * batches}, model))
    out["lqf"] = best(linear, begun)
    return out


# -- the linearised model itself ------------------------------------------------------------------


def _problem(study: Study) -> tuple[Part, nn.Module]:
    """The samples and the base of the race and of the two seeds."""
    train, bundle = study.sample(study.size.racing, 0), study.bundle(0)
    seen = features(models.load(bundle).backbone, train.x)
    return train, lqf.base(bundle, ridge(seen, train.y, len(study.new), alpha=ALPHA))


#: Of the two seeds and of the race: all pictures a step, so that a step is a step.
PULL = 1.0

#: Damping of the two seeds' K-FAC: nearly all directions count alike. What no picture speaks of has
#: one and the same curvature, that of the pull, and factors would only tell its directions apart.
SPREAD = 1e3


def two_seeds(study: Study, test: Part) -> dict[str, Any]:
    """A24: two changes drawn at random, trained to the end, and how far the outputs are apart."""
    train, base = _problem(study)
    outputs, ends, starts = [], [], []
    few = Part(test.x[:: max(1, len(test.x) // 500)], test.y[:: max(1, len(test.y) // 500)])
    for seed in (0, 1):
        model = lqf.DualStream(base, train.x[:2])
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, change in zip(model.delta, model.changes.values(), strict=True):
                spread = float(base.get_parameter(name).std().nan_to_num(1.0))
                change += 0.05 * spread * torch.randn(change.shape, generator=generator)
        starts.append(features(model, few.x))
        settings = lqf.Settings(
            epochs=study.size.optimum,
            batch=len(train.x),
            alpha=ALPHA,
            pull=PULL,
            damping=SPREAD,
            seed=seed,
        )
        ends.append(lqf.fit(model, train.x, train.y, settings, reporter=Reporter(quiet=True))[-1])
        outputs.append(features(model, few.x))
    return {
        "steps": study.size.optimum,
        "pull": PULL,
        "pictures": len(few.x),
        "apart_before": float((starts[0] - starts[1]).abs().max()),
        "apart": float((outputs[0] - outputs[1]).abs().max()),
        "largest_output": float(outputs[0].abs().max()),
        "objective": ends,
    }


def exactness(study: Study, test: Part) -> dict[str, Any]:
    """A25: the linearised model against the JVP in float64, and against finite differences."""
    train, base = _problem(study)
    model = lqf.DualStream(base, train.x[:2])
    settings = lqf.Settings(epochs=3, batch=len(train.x), alpha=ALPHA, pull=PULL)
    lqf.fit(model, train.x, train.y, settings, reporter=Reporter(quiet=True))
    x, delta = test.x[::10][:50], model.delta
    right = lqf.by_jvp(base, delta, x)
    exact, step = lqf.base(study.bundle(0), _head(base)).double(), 1e-6

    def at(share: float) -> Tensor:
        moved = {n: exact.get_parameter(n).detach() + share * d.double() for n, d in delta.items()}
        return torch.func.functional_call(exact, moved, (x.double(),))

    with torch.no_grad():
        slope = (at(step) - at(-step)) / (2 * step)
        change = right - exact(x.double())
    return {
        "graph_to_jvp": float((features(model, x).double() - right).abs().max()),
        "finite_differences": float((slope - change).norm() / change.norm()),
        "largest_output": float(right.abs().max()),
        "pictures": len(x),
    }


def _head(base: nn.Module) -> dict[str, Tensor]:
    return {k: base.get_parameter(f"head.{k}").detach() for k in ("weight", "bias")}


#: A loss counts as reached when so little of the way from the start to the optimum is left.
LEFT = 0.01


def race(study: Study, name: str, lr: float) -> dict[str, Any]:
    """One optimiser at one rate on the quadratic: the objective after each step, all pictures."""
    train, base = _problem(study)
    model = lqf.DualStream(base, train.x[:2])
    settings = lqf.Settings(
        epochs=study.size.race,
        batch=len(train.x),
        lr=lr,
        alpha=ALPHA,
        pull=PULL,
        optimizer=name,  # type: ignore[arg-type]
    )
    begun = time.process_time()
    start = float(lqf.objective(model, train.x, train.y, settings).detach())
    found = lqf.fit(model, train.x, train.y, settings, reporter=Reporter(quiet=True))
    cpu = round(time.process_time() - begun, 1)
    return {"optimizer": name, "lr": lr, "start": start, "objective": found, "cpu_s": cpu}


def steps_to(run: dict[str, Any], optimum: float) -> int | None:
    """Steps after which at most `LEFT` of the way to the optimum is left; None if never."""
    aim = optimum + LEFT * (run["start"] - optimum)
    return next((at + 1 for at, value in enumerate(run["objective"]) if value <= aim), None)


def identity(size: Size, spec: str) -> dict[str, Any]:
    """What a kept cell depends on besides its own numbers."""
    grids = {"penalties": PENALTIES, "tuned": TUNED, "linear": LINEAR, "rates": dict(RATES)}
    return {**asdict(replace(size, name="")), "data": spec, **grids, "pull": PULL}
