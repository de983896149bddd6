"""The Markdown pages of the repository, and what stands in them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(
    [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "bench" / "README.md",
        *DOCS.rglob("*.md"),
    ]
)

_FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"^`([\w./-]+)`:\n+```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(
    r"^    ((?:make|embtables|python -m|torchrun) .+?)(?:\s{2,}#.*)?$", re.MULTILINE
)
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"`[^`\n]+`")


def name_of(page: Path) -> str:
    """Return a page's path from the root."""
    return page.relative_to(ROOT).as_posix()


def python_of(page: Path) -> str:
    """Return the Python blocks of a page, one after another: they share a namespace."""
    return "\n".join(code for kind, code in _FENCED.findall(page.read_text()) if kind == "python")


def files_of(page: Path) -> dict[str, str]:
    """Return the files that a page shows: blocks below a line that names one, such as `shop.yaml`:"""
    return dict(_FILE.findall(page.read_text()))


def commands_of(page: Path) -> list[str]:
    """Return the commands that a page shows, indented lines; comments behind them left out."""
    return _COMMAND.findall(_FENCED.sub("", page.read_text()))


def links_of(page: Path) -> list[str]:
    """Return where a page's links lead."""
    return _LINK.findall(_CODE.sub("", _FENCED.sub("", page.read_text())))


def anchors_of(page: Path) -> list[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    text = _FENCED.sub("", page.read_text())
    words = (re.sub(r"[^\w\- ]", "", heading.strip().lower()) for heading in _HEADING.findall(text))
    return [heading.replace(" ", "-") for heading in words]
