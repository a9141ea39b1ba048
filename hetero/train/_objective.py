"""The loss of a query model: a method against stored gallery vectors, and what it builds on."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor, nn

from hetero import methods
from hetero.augment import View
from hetero.bundle import Bundle
from hetero.errors import ConfigError
from hetero.fit import Objective
from hetero.models import _nested as nested
from hetero.train._pictures import Pictures
from hetero.train._stored import stored_rows
from hetero.train._writing import head_of


class QueryObjective(Objective):
    """A method's loss against stored gallery vectors."""

    def __init__(
        self,
        net: nn.Module,
        method: methods.Method,
        own: nn.Module,
        view: View,
        setup: methods.Setup,
        tables: list[Tensor],
    ) -> None:
        """The net, the method and what it keeps, how pictures are seen, what is known of them."""
        super().__init__()
        self.net, self.method, self.own, self.view = net, method, own, view
        self.setup, self.tables = setup, tables
        self.partial, self._chosen = isinstance(net, nested.Several), list[Any]()
        self.register_buffer("labels", setup.labels, persistent=False)

    def choose(self) -> None:
        """Of several nets in one, those that this step trains."""
        if isinstance(self.net, nested.Several):
            self._chosen = self.net.sandwich()

    def forward(
        self, pixels: Tensor, views: Tensor, rows: Tensor, epoch: int, progress: float
    ) -> Tensor:
        """The method's loss of one batch; of several nets, the mean of theirs."""
        gallery = torch.from_numpy(stored_rows(self.setup.gallery, epoch, rows))
        labels = None if self.labels is None else self.labels[rows]  # type: ignore[index]
        seen = self.view(pixels, views)
        if isinstance(self.net, nested.Several):
            embedded = [self.net(seen, which) for which in self._chosen]
        else:
            embedded = [self.net(seen)]
        loss = pixels.new_zeros((), dtype=torch.float32)
        for query in embedded:
            step = methods.Step(query, gallery.to(pixels.device), rows, labels, progress)
            loss = loss + methods.loss_of(self.method, step, self.own)
        return loss / len(embedded)


def setup_for(
    gallery: Bundle,
    method: methods.Method,
    pictures: Pictures,
    stored: Float32[np.ndarray, "v n d"],
    seed: int,
) -> methods.Setup:
    """What the method can build on, the gallery's classifier among it if it needs one."""
    rows = head_labels = None
    if "head" in method.needs:
        rows, classes = head_of(gallery)
        if pictures.labels is not None:
            head_labels = _in_head(gallery, classes, pictures.classes, pictures.labels)
    return methods.Setup(stored, pictures.labels, len(pictures.classes), rows, head_labels, seed)


def _in_head(
    gallery: Bundle, theirs: tuple[str, ...], classes: tuple[str, ...], labels: Tensor
) -> Int64[Tensor, " n"]:
    """For each training picture its row in the gallery's head, or -1."""
    place = {name: row for row, name in enumerate(theirs)}
    where = torch.tensor([place.get(name, -1) for name in classes])
    if int(where.max()) < 0:
        raise ConfigError(
            f"{gallery.root}: the gallery model's classifier knows none of the {len(classes)} "
            "training classes; use a label-free method such as regression"
        )
    return where[labels]
