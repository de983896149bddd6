"""One order from many comparisons: the strengths of Bradley and Terry (Biometrika 1952).

    P(a better than b) = p_a / (p_a + p_b)

Comparisons may be few, weighted, and of different pairs. Every table also has half a win and half a loss
against one of strength 1, so that a table of which little is known stays near 1.
Found by the minorisation-maximisation of Hunter (Annals of Statistics 2004).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from trainer.advice.evidence import Outcome

AVERAGE = ""
"""Name of the table of strength 1: a win against it is a point in favour, a loss one against."""
_STEPS = 500


def strengths(tables: Sequence[str], outcomes: Iterable[Outcome]) -> dict[str, float]:
    """Return table -> strength; above 1, more speaks for it than against it."""
    place = {name: position for position, name in enumerate((AVERAGE, *tables))}
    met = np.zeros((len(place), len(place)))
    wins = np.full(len(place), 0.5)
    met[0, 1:] = met[1:, 0] = 1.0
    for better, worse, weight in outcomes:
        a, b = place[better], place[worse]
        met[a, b] += weight
        met[b, a] += weight
        wins[a] += weight
    found = np.ones(len(place))
    for _ in range(_STEPS):
        found = wins / (met / (found[:, None] + found[None, :])).sum(1)
        found[0] = 1.0
    return {name: float(found[place[name]]) for name in tables}
