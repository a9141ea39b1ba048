"""Vectors into files, files into an index; and a query of another space refused."""

from __future__ import annotations

from dataclasses import replace

from _places import places

from hetero import Embeddings
from hetero.errors import SpaceMismatchError
from hetero.progress import Reporter
from hetero.stages import embedding, indexing

here = places()
quiet = Reporter(quiet=True)
files = here.output / "gallery.safetensors", here.output / "query.safetensors"
embedding.embed_split(here.gallery, here.images, "test", files[0], quiet)
embedding.embed_split(here.query, here.images, "test", files[1], quiet)

# "hnsw:FOLDER", "milvus:FILE#NAME" and "pgvector:URL#TABLE" are asked in the same way.
spec = f"exact:{here.output / 'index'}"
built = indexing.build(spec, files[:1], quiet, replace=True)
print(f"{spec}: {built.rows} rows of space {built.space.id}")

asked = Embeddings.load(files[1])
found = indexing.search(spec, asked, 3)
for query, best in zip(asked.ids[:3], found.ids, strict=False):
    print(f"{query}: {', '.join(best)}")

# Another gallery model's space: same length, other weights, so other axes.
foreign = replace(asked, space=replace(asked.space, digest="0" * 64))
try:
    indexing.search(spec, foreign, 3)
except SpaceMismatchError as error:
    print(f"refused: {error}")
else:
    raise SystemExit("vectors of another space were let in")
