"""DeepFashion's In-shop Clothes Retrieval as it is published: ``inshop:PATH``.

Liu et al., "DeepFashion: Powering Robust Clothes Recognition and Retrieval with Rich Annotations",
CVPR 2016. The official split: items of the partition "train" (one in seven of them watches),
queries and gallery of the rest. PATH has list_eval_partition.txt (here or in Eval/) and the
pictures below Img/ or beside it.
"""

from __future__ import annotations

from hetero.data import Images, Split
from hetero.data._lists import rows
from hetero.data._pictures import Entry, collection
from hetero.data._walk import existing
from hetero.errors import DataError

_LAYOUT = "list_eval_partition.txt (here or in Eval/) and img/ (here or in Img/)"
_ROLES: dict[str, tuple[Split, str]] = {
    "train": ("train", "both"),
    "query": ("test", "query"),
    "gallery": ("test", "gallery"),
}


def source(where: str, seed: int = 0) -> Images:
    """The collection.

    Args:
        where: The folder of the benchmark.
        seed: Of the choice of validation items.

    Raises:
        DataError: No such folder, or not this data set.
    """
    name = f"inshop:{where}"
    root = existing(name, where, _LAYOUT)
    lists = [root / "list_eval_partition.txt", root / "Eval" / "list_eval_partition.txt"]
    found = next((path for path in lists if path.exists()), lists[0])
    # The first line is a count, the second the names of the columns.
    entries = []
    for path, item, status in rows(name, found, 3, skip=2, layout=_LAYOUT):
        if status not in _ROLES:
            raise DataError(f"{name}: {path}: status {status!r}; there are {', '.join(_ROLES)}")
        split, role = _ROLES[status]
        entries.append(Entry(path, item, split, role))
    pictures = next((p for p in (root, root / "Img") if (p / "img").is_dir()), root)
    return collection(name, root, pictures, entries, (), seed)
