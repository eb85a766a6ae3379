"""Find the weights of a standard network in what training scripts save around them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from oekd_fast.models.published_names import LAYOUTS, Layout, find_layout

# Entries of checkpoints that hold weights. An average of the weights comes first, as in timm; then the first that fits.
_ENTRIES = (
    "state_dict_ema", "model_ema", "ema_state_dict", "ema", "params_ema",
    "state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights", "params",
)  # fmt: skip
# Parts of names that wrappers of modules put anywhere, of torch.compile, FSDP and activation checkpointing.
_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
_DEEPEST = 4  # entries within entries
_SHOWN = 3


class FoundWeights(NamedTuple):
    """Weights of a standard network.

    Args:
        weights: values by their names in `layout`; nothing is known about the values.
        original: for each of these names, the name in the mapping that it was taken from.
        layout: naming scheme of the names.
        taken: what was taken, such as "the entry 'model_ema', without the prefix 'module.'"; empty for all as it is.
    """

    weights: Mapping[str, Any]
    original: Mapping[str, str]
    layout: Layout
    taken: str


def find_weights(content: Mapping[Any, Any]) -> FoundWeights | None:
    """Return the weights of a standard network in `content`, or None.

    `content` is a state dict or a checkpoint that holds one in an entry, at most four entries deep. A prefix that all
    names of the network share, such as "module.", and the parts of names that wrappers insert are removed.

    Raises:
        ValueError: there are several networks, and none of them comes first.
    """
    return _find(content, ())


def _find(content: Mapping[Any, Any], entries: tuple[str, ...]) -> FoundWeights | None:
    if found := _in_names(content, entries):
        return found
    if len(entries) == _DEEPEST:
        return None
    inner = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Mapping)}
    for key in _ENTRIES:
        if key in inner and (found := _find(inner[key], (*entries, key))):
            return found
    others = {key: found for key, value in inner.items() if (found := _find(value, (*entries, key)))}
    if len(others) > 1:
        raise ValueError(f"state_dict: expected one network, got one in each of the entries {_listed(list(others))}")
    return next(iter(others.values()), None)


def _in_names(content: Mapping[Any, Any], entries: tuple[str, ...]) -> FoundWeights | None:
    """Return the weights among the values of `content` itself."""
    plain: dict[str, str] = {}
    for name in content:
        if isinstance(name, str):
            plain.setdefault(_without_wrappers(name), name)
    prefixes = _prefixes(plain)
    if not prefixes:
        return None
    if len(prefixes) > 1:
        raise ValueError(
            f"state_dict: expected one network, got one for each of the prefixes {_listed(prefixes)} of names; "
            "save the weights of one of them"
        )
    (prefix,) = prefixes
    original = {name.removeprefix(prefix): full for name, full in plain.items() if name.startswith(prefix)}
    weights = {name: content[full] for name, full in original.items()}
    left_out = [full for name, full in plain.items() if not name.startswith(prefix)]
    return FoundWeights(weights, original, find_layout(weights), _describe(entries, prefix, left_out))


def _prefixes(names: Mapping[str, str]) -> list[str]:
    """Return what precedes the names of a standard network; empty if there is none."""
    return sorted(
        {
            name.removesuffix(unique)
            for unique in (layout.unique_name for layout in LAYOUTS)
            for name in names
            if name == unique or name.endswith(f".{unique}")
        }
    )


def _without_wrappers(name: str) -> str:
    for part in _WRAPPERS:
        name = name.replace(part, "")
    return name


def _describe(entries: tuple[str, ...], prefix: str, left_out: list[str]) -> str:
    parts = [f"the entry {' of '.join(repr(key) for key in reversed(entries))}"] if entries else []
    parts += [f"without the prefix {prefix!r}"] if prefix else []
    parts += [f"leaving out {_listed(left_out)}"] if left_out else []
    return ", ".join(parts)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more
