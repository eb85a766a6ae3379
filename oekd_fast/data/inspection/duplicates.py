"""Images with the same pixels, in one split, in several splits, and under several labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from oekd_fast.data.inspection.facts import HASH_BYTES, SplitFacts

# Names in one example.
EQUAL_SHOWN = 4


@dataclass(frozen=True)
class Duplicates:
    """Images with the same pixels as other images.

    Args:
        kind: "within train", "in train and test", or "under two labels".
        count: number of images concerned: within a split, those that repeat an earlier image of it; in two splits,
            those of the second that are also in the first; under two labels, all that have an equal image with another
            label.
        examples: names and class indices of equal images, a tuple for each example.
    """

    kind: str
    count: int
    examples: tuple[tuple[tuple[str, int], ...], ...]


def find_duplicates(splits: Sequence[SplitFacts], examples: int = 3) -> list[Duplicates]:
    """Compare all images that were decoded by the hashes of their pixels.

    Args:
        splits: the splits, inspected.
        examples: largest number of examples for each kind.
    """
    digests = b"".join(digest for split in splits for digest in split.digests)
    if not digests:
        return []
    # The number of the group of equal images, for each image of all splits.
    _, group = np.unique(np.frombuffer(digests, dtype=f"V{HASH_BYTES}"), return_inverse=True)
    names = [name for split in splits for name in split.names]
    labels = np.concatenate([split.decoded_labels.numpy() for split in splits])
    ends = np.cumsum([len(split.digests) for split in splits])
    parts = [slice(end - len(split.digests), end) for split, end in zip(splits, ends, strict=True)]

    def found(kind: str, members: np.ndarray, counted: np.ndarray) -> Duplicates:
        """Return the images `counted`; examples show the images among `members` of the first groups."""
        shown = []
        for number in dict.fromkeys(group[counted].tolist()):
            if len(shown) == examples:
                break
            equal = members[group[members] == number]
            shown.append(tuple((names[index], int(labels[index])) for index in equal[:EQUAL_SHOWN]))
        return Duplicates(kind, len(counted), tuple(shown))

    everything = np.arange(len(group))
    result = []
    for split, part in zip(splits, parts, strict=True):
        members = everything[part]
        _, first = np.unique(group[part], return_index=True)
        result.append(found(f"within {split.name}", members, np.delete(members, first)))
    for (split, part), (other, other_part) in combinations(zip(splits, parts, strict=True), 2):
        shared = everything[other_part][np.isin(group[other_part], group[part])]
        members = np.concatenate([everything[part], everything[other_part]])
        result.append(found(f"in {split.name} and {other.name}", members, shared))
    lowest, highest = np.full(group.max() + 1, labels.max()), np.full(group.max() + 1, -1)
    np.minimum.at(lowest, group, labels)
    np.maximum.at(highest, group, labels)
    result.append(found("under two labels", everything, np.flatnonzero((lowest != highest)[group])))
    return result
