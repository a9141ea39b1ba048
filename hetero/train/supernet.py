"""Training of a supernet into a gallery model's space, and its candidates' scores."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor, nn

from hetero import models
from hetero._files import sha256, write_json
from hetero._processes import processes
from hetero.augment import View
from hetero.augment import gather as gather_views
from hetero.bundle import Bundle
from hetero.data import Images
from hetero.errors import BundleError, ConfigError
from hetero.fit import Settings
from hetero.nas.rewards import Rewards, rewards
from hetero.nas.space import Architecture
from hetero.nas.space import load as load_space
from hetero.nas.supernet import Sampling, Supernet
from hetero.progress import Reporter
from hetero.train._pictures import Pictures, gather
from hetero.train._writing import finished, run_digest, tidy
from hetero.train.query import QueryRecipe, fit_and_write, fit_query, run_of, write_query

WEIGHTS, NOTE = "supernet.safetensors", "supernet.json"
VERSION = 1
#: Batches that statistics are taken of, and their size: SPOS takes 200, but more than ten change
#: scores by less than a point here (benchmarks/nas).
BATCHES, BATCH = 10, 128


@dataclass(frozen=True)
class SupernetRecipe:
    """What a supernet is.

    Attributes:
        space: See `hetero.nas.space.load`.
        sampling: See `hetero.nas.supernet.Supernet`.
        method, settings, views, dim: See `hetero.train.QueryRecipe`.
    """

    space: str = "elastic"
    sampling: Sampling = "sandwich"
    method: str = "csd+regression"
    settings: Mapping[str, Any] | None = None
    views: int = 8
    dim: int = 0

    def __post_init__(self) -> None:
        """Refuse what is not known."""
        if self.sampling not in ("sandwich", "single"):
            raise ConfigError(f"sampling is sandwich or single, got {self.sampling!r}")

    def query(self, backbone: str) -> QueryRecipe:
        """The recipe of one of its architectures."""
        return QueryRecipe(backbone, self.method, self.settings, self.views, self.dim)


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained supernet, and what its candidates are scored by.

    Attributes:
        net: In evaluation mode.
        recipe: How it was trained.
        settings: The same.
        gallery: Whose space its nets embed into.
        images: What it was trained on.
        pictures: Of them, training and validation pictures.
        gallery_side: The gallery model's rows of the validation pictures.
        digest: SHA-256 of all that its weights depend on.
    """

    net: Supernet
    recipe: SupernetRecipe
    settings: Settings
    gallery: Bundle
    images: Images
    pictures: Pictures
    gallery_side: Float32[np.ndarray, "m d"]
    digest: str

    def score(self, architecture: Architecture, batches: int = BATCHES) -> Rewards:
        """The rewards of an architecture with inherited weights, on validation classes."""
        return self.score_net(self.net.extract(architecture, batches))

    def score_net(self, net: models.EmbeddingNet) -> Rewards:
        """The rewards of any query model, on validation classes."""
        side = models.embed_pixels(net, self.gallery.preprocess, self.pictures.watched)
        return rewards(self.pictures.watch, side, self.gallery_side)

    def tuned(
        self,
        architecture: Architecture,
        settings: Settings,
        root: Path,
        *,
        vectors: Path | None = None,
        resume: bool = False,
        reporter: Reporter,
    ) -> Bundle:
        """The query bundle of an architecture, trained further from its inherited weights.

        Args:
            architecture: Of the space.
            settings: Of its own training.
            root: See `hetero.train.train_query`, as what follows.
            vectors: The same.
            resume: The same.
            reporter: The same.
        """
        recipe, run = self._run(architecture)
        if resume and (done := finished(root, run, settings)):
            reporter.line(f"query model: {root} is finished")
            return done

        def build(_: Pictures) -> nn.Module:
            return self.net.extract(architecture)

        return fit_and_write(
            build,
            self.gallery,
            self.images,
            recipe,
            settings,
            root,
            run,
            vectors,
            resume,
            reporter,
            self._said,
        )

    def bundle(self, architecture: Architecture, root: Path) -> Bundle:
        """The query bundle of an architecture with inherited weights."""
        recipe, run = self._run(architecture)
        net = self.net.extract(architecture)
        return write_query(
            root,
            run,
            net,
            recipe,
            self.gallery,
            self.images,
            self.pictures,
            self.settings,
            self._said,
        )

    def _run(self, architecture: Architecture) -> tuple[QueryRecipe, dict[str, Any]]:
        """The recipe of one of its architectures, and what the run is that makes it."""
        recipe = self.recipe.query(self.net.space.backbone(architecture))
        return recipe, {**run_of(self.gallery, self.images, recipe), "supernet": self.digest}

    @property
    def _said(self) -> dict[str, str]:
        """What the bundle of an architecture tells of where it is from."""
        return {"supernet": self.digest[:12], "space": self.recipe.space}


def train_supernet(
    gallery: Bundle,
    images: Images,
    recipe: SupernetRecipe,
    settings: Settings,
    root: Path,
    *,
    vectors: Path | None = None,
    resume: bool = False,
    reporter: Reporter,
) -> Trained:
    """The supernet of a space, trained into the gallery bundle's space; weights are kept in `root`.

    Args:
        gallery: Fixes space, dimension and preprocessing.
        images: As for `train_query`.
        recipe: Space, sampling, method.
        settings: As for `train_query`.
        root: Gets supernet.safetensors and supernet.json.
        vectors: As for `train_query`.
        resume: Take a finished supernet of this very recipe as it is, or go on with a stopped one.
        reporter: Shows progress.

    Raises:
        ConfigError: The space's architectures cannot share weights, or see `train_query`.
        TrainingError, Interrupted: See `hetero.fit.fit`.
    """
    space = load_space(recipe.space)
    query = recipe.query(space.backbone(space.largest()))
    asked = {
        **run_of(gallery, images, query),
        "role": "supernet",
        "space": recipe.space,
        "sampling": recipe.sampling,
    }
    digest = run_digest(asked, settings)
    if resume and (root / NOTE).exists() and _note(root)["run"] == digest:
        reporter.line(f"supernet: {root} is finished")
        return load_supernet(root, gallery, images, recipe, settings, reporter=reporter)

    def build(pictures: Pictures) -> nn.Module:
        return _empty(recipe, gallery, pictures, settings)

    net, pictures = fit_query(
        build, gallery, images, query, settings, root, asked, vectors, resume, reporter
    )
    assert isinstance(net, Supernet)
    _save(net, root, digest, recipe)
    return _trained(net, recipe, settings, gallery, images, pictures, digest)


def load_supernet(
    root: Path,
    gallery: Bundle,
    images: Images,
    recipe: SupernetRecipe,
    settings: Settings,
    *,
    reporter: Reporter,
) -> Trained:
    """A supernet that `train_supernet` left in `root`.

    Raises:
        BundleError: There is none, or it is damaged.
    """
    from safetensors.numpy import load_file

    note = _note(root)
    path = root / WEIGHTS
    if not path.exists() or sha256(path) != note["weights_sha256"]:
        raise BundleError(f"{path}: missing or changed since it was written; train it again")
    pictures = gather(images, gallery.preprocess, reporter)
    net = _empty(recipe, gallery, pictures, settings)
    try:
        net.load_state_dict({k: torch.from_numpy(v) for k, v in load_file(path).items()})
    except RuntimeError as error:
        raise BundleError(
            f"{path}: does not fit search space {recipe.space!r} ({models.first_line(error)})"
        ) from error
    return _trained(net, recipe, settings, gallery, images, pictures, note["run"])


def _note(root: Path) -> dict[str, Any]:
    try:
        note: dict[str, Any] = json.loads((root / NOTE).read_text())
        if note["version"] != VERSION:
            raise BundleError(
                f"{root / NOTE}: a supernet of version {note['version']}, this program reads "
                f"{VERSION}; use the version that wrote it, or train it again"
            )
        return {"run": str(note["run"]), "weights_sha256": str(note["weights_sha256"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{root / NOTE}: no supernet there ({error})") from error


def _empty(
    recipe: SupernetRecipe, gallery: Bundle, pictures: Pictures, settings: Settings
) -> Supernet:
    return Supernet(
        load_space(recipe.space),
        gallery.space.dim,
        gallery.preprocess.size_px,
        recipe.dim,
        recipe.sampling,
        calibration(pictures, gallery, settings),
    )


def calibration(
    pictures: Pictures, gallery: Bundle, settings: Settings, count: int = BATCHES
) -> list[Tensor]:
    """So many batches of training pictures, in views as training draws them, normalised.

    Fewer of them are the first of more.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    there = len(pictures.pixels)
    view, augment = View(gallery.preprocess), replace(settings.augment, mix=0.0)
    out = []
    for _ in range(count):
        rows = torch.randint(there, (min(BATCH, there),), generator=generator)
        views = augment.draw(len(rows), generator)
        out.append(view(gather_views(pictures.pixels, rows, views), views))
    return out


def _save(net: Supernet, root: Path, digest: str, recipe: SupernetRecipe) -> None:
    from safetensors.numpy import save_file

    path = root / WEIGHTS
    save_file({k: np.ascontiguousarray(v) for k, v in models.arrays(net).items()}, path)
    write_json(
        root / NOTE,
        {
            "version": VERSION,
            "run": digest,
            "recipe": asdict(recipe),
            "weights_sha256": sha256(path),
        },
    )
    tidy(root)


def _trained(
    net: Supernet,
    recipe: SupernetRecipe,
    settings: Settings,
    gallery: Bundle,
    images: Images,
    pictures: Pictures,
    digest: str,
) -> Trained:
    net.to(processes().device).eval()
    side = models.embed_pixels(models.load(gallery), gallery.preprocess, pictures.watched)
    return Trained(net, recipe, settings, gallery, images, pictures, side, digest)
