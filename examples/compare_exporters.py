"""Your own torch.onnx.export against the file that hetero wrote: cosine, neighbours, flips."""

from __future__ import annotations

import numpy as np
import onnxruntime
import torch
from _places import places

from hetero import Embeddings, models
from hetero.compare import agreement, flips
from hetero.evaluate import task
from hetero.export import FileEmbedder

here = places()
job = task(here.images, "test")
pixels = here.images.pixels(job.rows, here.query.preprocess)

# An export as one would write it by hand, here by PyTorch's older exporter: float input,
# preprocessing left to the app.
net = models.load(here.query).eval()
here.output.mkdir(parents=True, exist_ok=True)
path = here.output / "by-hand.onnx"
example = torch.from_numpy(here.query.preprocess.tensor(pixels[:1]))
torch.onnx.export(
    net,
    (example,),
    path,
    input_names=["images"],
    output_names=["embedding"],
    dynamic_axes={"images": {0: "n"}, "embedding": {0: "n"}},
    dynamo=False,
)
session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
(rows,) = session.run(None, {"images": here.query.preprocess.tensor(pixels)})
by_hand = Embeddings.normalised(here.query.space, job.ids, np.asarray(rows), "torch.onnx.export")

with FileEmbedder(here.query, here.query.artifact("onnx", "fp32")) as embedder:
    ours = embedder.embed(job.ids, pixels)
index = models.TorchEmbedder(here.gallery).embed(job.ids, pixels)

asked, gallery = job.query_ids, index.take(job.gallery_ids)
close = agreement(ours.take(asked), by_hand.take(asked), gallery, job.truth)
changed = flips(job.rank(ours, index), job.rank(by_hand, index))
print(f"{ours.made_by} against {by_hand.made_by}, {len(asked)} queries")
print(f"cosine, worst: {close.cosine.min():.6f} ({close.worst_id})")
print(f"first 10 answers kept: {close.overlap.mean():.1%}")
print(f"right before, wrong now: {changed.negative.sum()}; the reverse: {changed.positive.sum()}")
assert close.cosine.min() > 0.999
