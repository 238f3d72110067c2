"""The two tables of the notes: made ones of the same shape, and the real ones where they lie beside the checkout."""

from __future__ import annotations

import gzip
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import SHARED

KINDS = ("made", "real")


def tables_of_the_notes(kind: str, folder: Path) -> Path:
    """Return the folder that holds temps.csv and diabetes.csv.gz, `made` in `folder` or `real` ones."""
    if kind == "real":
        if not (SHARED / "temps.csv").exists():
            pytest.skip("the tables are not beside the checkout")
        return SHARED
    rng = np.random.default_rng(0)
    days = [date(2016, 1, 1) + timedelta(days=int(n)) for n in sorted(rng.choice(366, 348, replace=False))]
    temperatures = (55 + 20 * rng.standard_normal((len(days), 3))).round().astype(int)
    rows = [
        f"{d.year},{d.month},{d.day},{d:%a},{two},{one},{(one + two) / 2:.1f},{one + rng.integers(-5, 6)},{friend}"
        for d, (two, one, friend) in zip(days, temperatures.tolist(), strict=True)
    ]
    lines = ["year,month,day,week,temp_2,temp_1,average,actual,friend", *rows]
    (folder / "temps.csv").write_text("\n".join(lines) + "\n")
    # 758 patients, eight measures in -1 to 1, ill or not; no header.
    measures = rng.uniform(-1, 1, (758, 8))
    rows = [",".join([*(f"{m:.6g}" for m in patient), f"{patient[1] > 0:d}"]) for patient in measures.tolist()]
    (folder / "diabetes.csv.gz").write_bytes(gzip.compress(("\n".join(rows) + "\n").encode()))
    return folder
