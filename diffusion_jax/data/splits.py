"""Parts of a data set, for training and for tests, by the names of their files and folders."""

import re

# As Hugging Face knows them.
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


def words(name: str) -> set[str]:
    """The words of a name in small letters: those of trainLabels are train and labels."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return set(re.split(r"[^a-z]+", apart.lower()))


def split_of(name: str) -> str | None:
    """The part that a name tells, if any: "train", "validation" or "test"."""
    found = words(name)
    return next((split for split, known in _SPLITS.items() if found & set(known)), None)
