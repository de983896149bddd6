"""Links lead somewhere, every method has a page, and numbers are those of the results."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pages import DOCS, PAGES, ROOT, anchors_of, links_of, name_of

from bench.common import known_cells
from bench.options import START as KEYS
from bench.options import keys
from bench.pages import (
    CONFIGURATION,
    METHODS,
    PUBLISHED,
    SIDE_BY_SIDE,
    START,
    generated,
    side_by_side,
)
from embtables.compressor import AXES

NAMED = re.compile(
    r"`((?:bench|data|docs|embtables|models|recipes|requirements|tests)/[\w/.-]+\.\w+)`"
)
NUMBER = re.compile(r"(\.\d{4}) ± (\.\d{4})")
KINDS = [(axis, kind) for axis in AXES for kind in AXES[axis].names()]

each_page = pytest.mark.parametrize(
    "page", [pytest.param(page, id=name_of(page)) for page in PAGES]
)
each_method = pytest.mark.parametrize(("axis", "kind"), KINDS)


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for link in links_of(page):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert ROOT in target.parents, link
        if anchor:
            assert anchor in anchors_of(target), link


@each_page
def test_anchors_are_unique(page: Path) -> None:
    anchors = anchors_of(page)
    assert len(anchors) == len(set(anchors))


@each_page
def test_files_that_are_named_exist(page: Path) -> None:
    for name in NAMED.findall(page.read_text()):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", [pytest.param(p, id=name_of(p)) for p in DOCS.rglob("*.md")])
def test_pages_stay_in_the_site(page: Path) -> None:
    """Links out of docs/ would be dead there: such files are named, not linked."""
    for link in links_of(page):
        if "://" not in link and not link.startswith("#"):
            assert DOCS in (page.parent / link).resolve().parents, link


def test_every_page_is_linked() -> None:
    linked = {DOCS / "README.md"} | {
        (page.parent / link.partition("#")[0]).resolve()
        for page in PAGES
        for link in links_of(page)
    }
    assert set(DOCS.rglob("*.md")) <= linked


def test_published_numbers_beside_ours_are_not_stale() -> None:
    _, start, rest = (DOCS / PUBLISHED).read_text().partition(SIDE_BY_SIDE)
    assert start + rest == side_by_side(), "stale; run python -m bench.pages"


def test_keys_of_the_configuration_are_not_stale() -> None:
    _, start, rest = (DOCS / CONFIGURATION).read_text().partition(KEYS)
    assert start + rest == keys(), "stale; run python -m bench.pages"


@each_method
def test_method_has_a_page_that_is_not_stale(axis: str, kind: str) -> None:
    page = METHODS / axis / f"{kind}.md"
    assert page.exists(), f"write {name_of(page)}: what it does, its formula, paper and bytes"
    written, start, rest = page.read_text().partition(START)
    assert start + rest == generated(axis, kind), "stale; run python -m bench.pages"
    assert written.startswith(f"# {kind}: ")


def test_no_page_is_left_of_a_method_that_is_gone() -> None:
    assert {(page.parent.name, page.stem) for page in METHODS.rglob("*.md")} == set(KINDS)


def metrics(value: Any) -> Iterator[tuple[str, str]]:
    """Yield every mean and standard deviation of a result, as pages write them."""
    if isinstance(value, dict):
        if value.get("mean") is not None and value.get("std") is not None:
            mean, std = (f"{value[key]:.4f}".removeprefix("0") for key in ("mean", "std"))
            yield mean, std
        for inner in value.values():
            yield from metrics(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from metrics(inner)


@each_page
def test_numbers_are_measured(page: Path) -> None:
    files = list((ROOT / "bench" / "results").glob("*.json"))
    known = {pair for file in files for pair in metrics(json.loads(file.read_text()))}
    for file in files:
        if file.stem.startswith("sweep_"):  # its runs are kept one by one; cells have their means
            known.update(metrics(known_cells(file.stem)))
    assert [pair for pair in NUMBER.findall(page.read_text()) if pair not in known] == []
