"""How fast does `prepare` stream Criteo rows, and how much memory does it take at its peak?

python -m bench.prepare PATH          (a file in the layout of Criteo, millions of rows)
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from datetime import date
from pathlib import Path

from bench.common import RESULTS
from data.criteo import Criteo, CriteoConfig
from data.prepare import prepare
from data.store import Store
from trainer.loop import peak_memory
from trainer.rundir import environment

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path, help="raw file")
    path = parser.parse_args().path
    with tempfile.TemporaryDirectory(dir=".") as folder:
        config = CriteoConfig(root=path, store=Path(folder))
        start = time.perf_counter()
        store = Store.open(prepare(Criteo(config)))
        seconds = time.perf_counter() - start
    rows = sum(store.schema.rows.values())
    result = {
        "question": "prepare",
        "date": date.today().isoformat(),
        "environment": {k: v for k, v in environment().items() if k != "command"},
        "input_bytes": path.stat().st_size,
        "rows": rows,
        "vocabulary_rows": sum(table.rows for table in store.schema.tables),
        "seconds": round(seconds, 2),
        "rows_per_second": round(rows / seconds),
        "peak_memory_bytes": peak_memory(),
    }
    (RESULTS / "prepare.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({k: v for k, v in result.items() if k != "environment"}, indent=1))
