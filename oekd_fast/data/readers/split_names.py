"""Names of splits: which name means training, validation or test, and which stored split is read as which."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from oekd_fast.data.error import DataError
from oekd_fast.data.names import printable

_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "development", "eval", "evaluation"),
    "test": ("test", "testing"),
}
_ROLE_OF = {word: role for role, words in _WORDS.items() for word in words}
# Words that may follow, as in "training_set" or "TestData".
_ENDINGS = ("set", "data", "images", "split")
_SEPARATORS = re.compile(r"[\W_]+")
# The common beginning of several names, up to its last separator, as in "seg_train" and "seg_test".
_BEGINNING = re.compile(r".*[\W_]")


@dataclass(frozen=True)
class SplitChoice:
    """Stored splits by what they are read as.

    Args:
        stored: stored name of "train" and, where available, of "validation" and "test". A validation split without a
            test split is read as the test split.
        ignored: names of stored splits that are not read.
    """

    stored: Mapping[str, str]
    ignored: tuple[str, ...]

    def note(self, where: str) -> str | None:
        """Return a line that says which split of `where` is read as which; None if every name says so itself."""
        if not self.ignored and all(role == name for role, name in self.stored.items()):
            return None
        read = ", ".join(f"{role} from {printable(repr(name))}" for role, name in self.stored.items())
        ignored = f"; ignored: {quoted(self.ignored)}" if self.ignored else ""
        return f"{where}: splits: {read}{ignored}"


def split_role(name: str) -> str | None:
    """Return "train", "validation" or "test" for a usual name of that split in any case; None for another name."""
    plain = _SEPARATORS.sub("", name).casefold()
    endings = (plain.removesuffix(ending) for ending in ("", *_ENDINGS))
    return next((_ROLE_OF[word] for word in endings if word in _ROLE_OF), None)


def split_roles(names: Collection[str]) -> dict[str, str | None]:
    """Return the role of each name (see `split_role`).

    If no name means training, a beginning that all names share is left out of account: "seg_train" and "seg_test" are
    the training and the test split.
    """
    roles = {name: split_role(name) for name in names}
    beginning = _BEGINNING.match(os.path.commonprefix(list(names)))
    if "train" not in roles.values() and beginning is not None and len(roles) > 1:
        short = {name: split_role(name[beginning.end() :]) for name in names}
        if "train" in short.values():
            return short
    return roles


def choose_splits(where: str, names: Collection[str], skip: Collection[str] = ()) -> SplitChoice:
    """Choose the stored splits to read.

    Args:
        where: name of the data, for errors.
        names: names of the stored splits; names without a role are ignored.
        skip: roles that are not read.

    Raises:
        DataError: no name means training, or two names have the same role.
    """
    roles = split_roles(names)
    stored: dict[str, str] = {}
    for role in _WORDS:
        same = [name for name in names if roles[name] == role]
        if len(same) > 1 and role not in skip:
            raise DataError(f"{where}: expected one {role} split, got {quoted(same)}; rename or remove all but one")
        if same and role not in skip:
            stored[role] = same[0]
    if "train" not in stored:
        raise DataError(f"{where}: expected a split 'train', got {quoted(names) or 'none'}")
    if "test" not in stored and "validation" in stored:
        stored["test"] = stored.pop("validation")
    return SplitChoice(stored, tuple(name for name in names if name not in stored.values()))


def quoted(names: Iterable[str]) -> str:
    """Return names in quotes, separated by commas."""
    return ", ".join(printable(repr(name)) for name in names)
