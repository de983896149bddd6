"""Tables as HTML text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Column:
    """A column: its title, how it is aligned, and what a pointer that rests on the title reads."""

    title: str
    about: str = ""
    text: bool = False


def table(caption: str, columns: Sequence[Column], lines: Iterable[str]) -> str:
    """Return a table in a box that scrolls sideways; lines are made by `line` or `heading`."""
    heads = "".join(
        f'<th scope="col"{class_of("text" if column.text else "")}'
        f"{_attribute('title', column.about)}>{escape(column.title)}</th>"
        for column in columns
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{heads}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def line(name: str, values: Sequence[str], kind: str = "") -> str:
    """Return a row of HTML values below the name (HTML) of the line."""
    cells = "".join(value if value.startswith("<td") else f"<td>{value}</td>" for value in values)
    return f'<tr{class_of(kind)}><th scope="row">{name}</th>{cells}</tr>'


def heading(text: str, columns: int) -> str:
    """Return a row that is the title of those below it."""
    return f'<tr class="group"><th scope="rowgroup" colspan="{columns}">{escape(text)}</th></tr>'


def class_of(kind: str) -> str:
    """Return the attribute that gives an element a class, nothing for an empty one."""
    return _attribute("class", kind)


def _attribute(name: str, value: str) -> str:
    return f' {name}="{escape(value)}"' if value else ""
