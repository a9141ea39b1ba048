"""Red and blue exchanged on the device: what cosine says, and what search says."""

from __future__ import annotations

import numpy as np
from _places import places

from hetero.compare import flips
from hetero.evaluate import scores, task
from hetero.models import TorchEmbedder
from hetero.retrieval import pairwise_cosine

here = places()
job = task(here.images, "test")
pixels = here.images.pixels(job.rows, here.gallery.preprocess)
index = TorchEmbedder(here.gallery).embed(job.ids, pixels)

small = TorchEmbedder(here.query)
right = small.embed(job.ids, pixels)
swapped = small.embed(job.ids, np.ascontiguousarray(pixels[..., ::-1]))

cosine = pairwise_cosine(right, swapped)
before, after = job.rank(right, index), job.rank(swapped, index)
lost = flips(before, after).negative
# (A model that was trained for one epoch gives every picture the same answer, and minds nothing.)
print(f"cosine, median {np.median(cosine):.3f}, worst {cosine.min():.3f}")
print(f"Recall@1 {scores(before).recall_at_1.value:.0%} to {scores(after).recall_at_1.value:.0%}")
print(f"right before, wrong now: {lost.sum()} of {len(lost)} queries")
print("which stage did it: hetero diagnose, docs/diagnose.md")
