"""CUB-200-2011 as it is published: ``cub:PATH/CUB_200_2011``.

Wah et al., "The Caltech-UCSD Birds-200-2011 Dataset", 2011. The field's retrieval protocol: the
first 100 classes to train on (one in seven of them watches), the last 100 to test on, every test
picture both query and gallery.
"""

from __future__ import annotations

from hetero.data import Images, Split
from hetero.data._lists import rows
from hetero.data._pictures import Entry, collection
from hetero.data._walk import existing
from hetero.errors import DataError

_LAYOUT = "images.txt, image_class_labels.txt and images/ of CUB_200_2011"
_TRAINED = 100


def source(where: str, seed: int = 0) -> Images:
    """The collection.

    Args:
        where: The folder CUB_200_2011.
        seed: Of the choice of validation classes.

    Raises:
        DataError: No such folder, or not this data set.
    """
    name = f"cub:{where}"
    root = existing(name, where, _LAYOUT)
    paths = dict(rows(name, root / "images.txt", 2, layout=_LAYOUT))
    classes = dict(rows(name, root / "image_class_labels.txt", 2, layout=_LAYOUT))
    lost = sorted(paths.keys() - classes.keys())
    if lost:
        raise DataError(f"{name}: image_class_labels.txt has no class for image {lost[0]}")
    entries = [_entry(name, path, classes[number]) for number, path in paths.items()]
    return collection(name, root, root / "images", entries, (), seed)


def _entry(name: str, path: str, number: str) -> Entry:
    if not number.isdecimal():
        raise DataError(f"{name}: image_class_labels.txt: class {number!r} is not a number")
    split: Split = "train" if int(number) <= _TRAINED else "test"
    # A picture never answers itself; all others of its class do.
    return Entry(path, number, split, "both", path)
