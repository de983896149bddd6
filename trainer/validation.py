"""One validation that reports every problem of a configuration at once, in the user's words."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, Tag, ValidationError

from embtables.registry import nearest

M = TypeVar("M", bound=BaseModel)


class ConfigError(ValueError):
    """A configuration that does not fit the schema; the text lists every problem."""


def validate(schema: type[M], tree: Mapping[str, Any], name: str) -> M:
    """Return the configuration in a mapping.

    Args:
        schema: what the mapping has to look like.
        tree: nested mapping, as read from YAML.
        name: how the message calls the configuration (recipe or file).

    Raises:
        ConfigError: one line a problem: its path, what is allowed, the nearest known name.
    """
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        # A default that follows from a value with a problem is no problem of its own.
        own = (one for one in error.errors() if one["type"] != "default_factory_not_called")
        lines = dict.fromkeys(_explain(schema, problem) for problem in own)
    count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
    raise ConfigError(f"{name}: {count}\n" + "\n".join(f"  {line}" for line in lines))


def fields_of(model: type[BaseModel]) -> dict[str, Any]:
    """Return field name -> pydantic's description of it."""
    return dict(model.model_fields)


def model_at(
    schema: type[BaseModel], path: Sequence[str], tree: Mapping[str, Any]
) -> type[BaseModel] | None:
    """Return the model that validates the section at a path, chosen by the `kind` in the tree."""
    annotation: Any = schema
    node: Any = tree
    for key in path:
        annotation = _below(_choose(annotation, node), key)
        node = node.get(key) if isinstance(node, Mapping) else None
    chosen = _choose(annotation, node)
    return chosen if _is_model(chosen) else None


def paths(schema: type[BaseModel], above: str = "") -> Iterator[str]:
    """Yield the dotted path of every key that the schema knows."""
    for name, field in fields_of(schema).items():
        yield above + name
        for model in variants_of(field.annotation).values():
            yield from paths(model, f"{above}{name}.")


def _explain(schema: type[BaseModel], problem: Any) -> str:
    """Return one line about one of pydantic's errors."""
    path, model = _locate(schema, problem["loc"])
    dotted = ".".join(path)
    given, context = problem.get("input"), problem.get("ctx", {})
    match problem["type"]:
        case "extra_forbidden":
            return f"{dotted}: unknown key.{_elsewhere(schema, dotted, model)}"
        case "missing":
            return f"{dotted}: required, and not given"
        case "union_tag_invalid":
            known = context["expected_tags"].replace("'", "").split(", ")
            tag = context["tag"]
            return f'{dotted}.kind: unknown kind "{tag}".{nearest(tag, known)} Known: {", ".join(known)}'
        case "union_tag_not_found":
            return f"{dotted}.kind: required, and not given"
        case "model_type" if path and path[-1].isdigit():
            return f"{dotted}: expected keys and values, such as {{name: {given}}} (got {given!r})"
        case "model_attributes_type" | "model_type" | "dict_type":
            return f"{dotted}: expected a section, such as {dotted}.kind={given} (got {given!r})"
        case "tuple_type" | "list_type":
            return f"{dotted}: expected a list, such as {dotted}=[{given}] (got {given!r})"
        case "int_parsing" | "int_from_float":
            return f"{dotted}: expected a whole number (got {given!r})"
        case "float_parsing":
            return f"{dotted}: expected a number, such as 0.1 (got {given!r})"
        case "literal_error":
            known = context["expected"].replace("'", "").replace(" or ", ", ").split(", ")
            hint = nearest(str(given), known)
            return f"{dotted}: expected {context['expected']} (got {given!r}).{hint}".rstrip(".")
        case "value_error":
            return f"{dotted}: {context['error']}" if dotted else str(context["error"])
    message = problem["msg"].replace("Input should be", "expected")
    return f"{dotted}: {message[0].lower()}{message[1:]} (got {given!r})"


def _elsewhere(schema: type[BaseModel], dotted: str, model: type[BaseModel]) -> str:
    """Return what to do about an unknown key: a similar name beside it, or its true place."""
    key = dotted.rpartition(".")[2]
    known = sorted(fields_of(model))
    hint = nearest(key, known)
    homes = sorted({path for path in paths(schema) if path.rpartition(".")[2] == key} - {dotted})
    if not hint and homes:
        hint = f" Did you mean {' or '.join(homes)}?"
    return f"{hint} Known keys: {', '.join(known)}"


def _locate(schema: type[BaseModel], loc: Sequence[str | int]) -> tuple[list[str], type[BaseModel]]:
    """Return the path as the user types it, without pydantic's tags, and the model around it."""
    path: list[str] = []
    annotation: Any = schema
    model = schema
    for part in loc:
        variants = variants_of(annotation)
        if len(variants) > 1 and part in variants:
            annotation = variants[str(part)]
            continue
        if len(variants) == 1:
            model = annotation = next(iter(variants.values()))
        elif not _is_container(annotation):
            break
        path.append(str(part))
        annotation = _below(annotation, str(part))
    return path, model


def _choose(annotation: Any, node: Any) -> Any:
    variants = variants_of(annotation)
    if len(variants) > 1:
        return variants.get(str(node.get("kind"))) if isinstance(node, Mapping) else None
    return next(iter(variants.values()), annotation)


def _below(annotation: Any, key: str) -> Any:
    """Return the annotation of what lies under a key of a model, dict or sequence."""
    if _is_model(annotation):
        field = annotation.model_fields.get(key)
        return field.annotation if field else None
    inner = [member for member in _members(annotation) if _is_container(member)]
    return get_args(inner[0])[0 if get_origin(inner[0]) is not dict else 1] if inner else None


def _members(annotation: Any) -> list[Any]:
    """Return the alternatives of a union, looking through Annotated."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _members(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [inner for member in get_args(annotation) for inner in _members(member)]
    return [annotation]


def variants_of(annotation: Any) -> dict[str, type[BaseModel]]:
    """Return tag -> model for every model that an annotation allows."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        found: dict[str, type[BaseModel]] = {}
        for member in get_args(annotation):
            found |= variants_of(member)
        return found
    if origin is Annotated:
        inner, *metadata = get_args(annotation)
        tags = [item.tag for item in metadata if isinstance(item, Tag)]
        models = variants_of(inner)
        return {tags[0]: next(iter(models.values()))} if tags and models else models
    return {_kind_of(annotation): annotation} if _is_model(annotation) else {}


def _kind_of(model: type[BaseModel]) -> str:
    kind = model.model_fields.get("kind")
    if kind is None or get_origin(kind.annotation) is not Literal:
        return model.__name__
    return str(get_args(kind.annotation)[0])


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _is_container(annotation: Any) -> bool:
    return get_origin(annotation) in (dict, tuple, list)
