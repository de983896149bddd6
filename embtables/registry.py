"""Plug-ins found by file name: the file ``<package>/<kind>.py`` is the method called ``<kind>``.

A method is registered by the decorator ``@registry.register("<kind>")`` above its class and by
nothing else; no list elsewhere holds its name. Names and one-line descriptions are read from the
files without importing them, so that ``embtables ls`` needs no torch.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar, Union, cast

from pydantic import BaseModel, ConfigDict, Discriminator, Tag


class Config(BaseModel):
    """Base of every configuration: frozen, and a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


T = TypeVar("T")
Class = TypeVar("Class", bound=type)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``' Did you mean "x"?'`` for the closest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f' Did you mean "{close[0]}"?' if close else ""


class Registry(Generic[T]):
    """The methods of one package, by kind.

    Args:
        package: import path of the folder that holds one file a method.
        what: how error messages call such a method.
    """

    def __init__(self, package: str, what: str) -> None:
        self.package = package
        self.what = what
        self._classes: dict[str, type[T]] = {}

    def register(self, kind: str) -> Callable[[Class], Class]:
        """Class decorator that makes the class the method called ``kind``.

        Raises:
            ValueError: another class already has this kind.
        """

        def add(cls: Class) -> Class:
            other = self._classes.get(kind)
            if other is not None and other.__qualname__ != cls.__qualname__:
                raise ValueError(
                    f"{self.what} {kind!r} is already registered by {other.__module__}"
                )
            self._classes[kind] = cast("type[T]", cls)
            return cls

        return add

    def names(self) -> list[str]:
        """Return every kind, sorted: the files of the package and what outside code registered."""
        return sorted(self._files() | self._classes.keys())

    def descriptions(self) -> dict[str, str]:
        """Return kind -> first docstring line of its file, read without importing it."""
        lines = {}
        for kind in self.names():
            path = self._folder() / f"{kind}.py"
            doc = ast.get_docstring(ast.parse(path.read_text())) if path.exists() else None
            lines[kind] = (doc or "").partition("\n")[0]
        return lines

    def get(self, kind: str) -> type[T]:
        """Return the class of a kind.

        Raises:
            ValueError: unknown kind; the message names the nearest one and all known ones.
        """
        if kind not in self._classes and kind in self._files():
            importlib.import_module(f"{self.package}.{kind}")
        if kind not in self._classes:
            known = self.names()
            raise ValueError(
                f"unknown {self.what} {kind!r}.{nearest(kind, known)} Known: {', '.join(known)}"
            )
        return self._classes[kind]

    def config_union(self) -> Any:
        """Return the pydantic type "one of the registered Configs", chosen by its ``kind``."""
        members = tuple(
            Annotated[self.get(kind).Config, Tag(kind)]  # pyright: ignore[reportAttributeAccessIssue]
            for kind in self.names()
        )
        return Annotated[Union[members], Discriminator("kind")]  # noqa: UP007 - built at run time

    def _folder(self) -> Path:
        spec = importlib.util.find_spec(self.package)
        assert spec is not None
        assert spec.submodule_search_locations
        return Path(next(iter(spec.submodule_search_locations)))

    def _files(self) -> set[str]:
        files = self._folder().glob("*.py")
        return {file.stem for file in files if f'.register("{file.stem}")' in file.read_text()}
