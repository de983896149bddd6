"""From a YAML preset and dotted ``key=value`` to one mapping, with the origin of every value."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from trainer.validation import fields_of, model_at

Keys = tuple[str, ...]

_SIZES = (("budget",), ("ratio",))


class _Loader(yaml.SafeLoader):
    """YAML with floats as everybody writes them: PyYAML's 1.1 rules read ``1e-3`` as a string."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def read_yaml(text: str, where: str) -> Any:
    """Parse YAML text.

    Raises:
        ValueError: it is no YAML; the message starts with `where`.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{where}: not readable as YAML: {' '.join(str(error).split())}") from None


def read_preset(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises:
        ValueError: the file holds no mapping.
    """
    tree = read_yaml(path.read_text(), str(path))
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: expected a mapping of sections such as data, model and train")
    return tree


def parse_override(text: str) -> tuple[Keys, Any]:
    """Split ``train.batch_size=512`` into its path and its value; values are read as YAML.

    Raises:
        ValueError: there is no ``=``, or no key before it.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip("."):
        raise ValueError(f"expected key=value, such as train.batch_size=512, got {text!r}")
    return tuple(key.lstrip("-").split(".")), read_yaml(value, text)


def merge(
    schema: type[BaseModel], preset: Mapping[str, Any], overrides: Sequence[str]
) -> tuple[dict[str, Any], set[Keys]]:
    """Lay ``key=value`` texts over a preset.

    Setting a section's `kind` to another one drops what the preset said about the old kind and the
    new one does not know, so that ``model.kind=dlrm`` works on the preset of another model. Keys of
    the command line are never dropped: a wrong one stays an error.

    Returns:
        The merged mapping, and the paths that the command line set.

    Raises:
        ValueError: a text is not ``key=value``.
    """
    tree = copy.deepcopy(dict(preset))
    given = [parse_override(text) for text in overrides]
    for keys, value in given:
        if keys[-1] == "kind":
            _change_kind(schema, tree, keys[:-1], value)
    sizes = {keys[0] for keys, value in given if keys in _SIZES and value is not None}
    if len(sizes) == 1:
        # A size of the command line stands in for the preset's, whichever way that one is given.
        for (other,) in _SIZES:
            tree.pop(other, None)
    for keys, value in given:
        _set(tree, keys, value)
    return tree, {keys for keys, _ in given}


def leaves(tree: Mapping[str, Any], above: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """Yield (path, value) of everything that is not a mapping, in order."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, (*above, str(key)))
        else:
            yield (*above, str(key)), value


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return one line ``path: old -> new`` for each value in which two mappings differ."""
    before, after = dict(leaves(old)), dict(leaves(new))
    paths = [*before, *(path for path in after if path not in before)]
    return [
        f"{'.'.join(path)}: {before.get(path, '(absent)')} -> {after.get(path, '(absent)')}"
        for path in paths
        if before.get(path, "(absent)") != after.get(path, "(absent)")
    ]


def _set(tree: dict[str, Any], keys: Keys, value: Any) -> None:
    for depth, key in enumerate(keys[:-1], 1):
        below = tree.get(key)
        if below is not None and not isinstance(below, dict):
            whole = ".".join(keys[:depth])
            raise ValueError(
                f"{'.'.join(keys)}: {whole} is {below!r} here, which has no keys to change; "
                f"give all of it: {whole}=..."
            )
        tree[key] = below or {}
        tree = tree[key]
    tree[keys[-1]] = value


def _change_kind(schema: type[BaseModel], tree: dict[str, Any], section: Keys, kind: Any) -> None:
    node: Any = tree
    for key in section:
        node = node.get(key) if isinstance(node, dict) else None
    if not isinstance(node, dict) or node.get("kind") == kind:
        return
    node["kind"] = kind
    model = model_at(schema, section, tree)
    known = fields_of(model) if model is not None else {"kind"}
    for key in [key for key in node if key not in known]:
        del node[key]
