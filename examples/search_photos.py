"""The small model's file asks, the big model's vectors answer."""

from __future__ import annotations

from _places import places

from hetero import search
from hetero.evaluate import scores, task
from hetero.export import FileEmbedder
from hetero.models import TorchEmbedder

here = places()
job = task(here.images, "test")  # which pictures ask, which are searched, and what is right

pixels = here.images.pixels(job.rows, here.gallery.preprocess)
index = TorchEmbedder(here.gallery).embed(job.ids, pixels)
# On a phone this line is the exported file and your decoder; here it is the file on this machine.
with FileEmbedder(here.query, here.query.artifact("onnx", "fp32")) as small:
    asked = small.embed(job.ids, pixels)

queries, gallery = asked.take(job.query_ids), index.take(job.gallery_ids)
rows, cosines = search(queries, gallery, 3)
for query, best, cosine in zip(queries.ids[:5], rows, cosines, strict=False):
    answers = ", ".join(f"{gallery.ids[r]} {c:.2f}" for r, c in zip(best, cosine, strict=True))
    print(f"{query}: {answers}")

recall = scores(job.rank(asked, index)).recall_at_1
print(f"{small.name}: the first answer is right for {recall.value:.0%} of {len(queries)} queries")
