"""What several runs of one recipe come to: their mean and deviation, said and written to `result.json`."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, pstdev

import fastload
from fastload.formats import Dataset
from fastload.profiling.report import command, environment, write_json
from fastload.results import TrainResult, shown_settings


def tell(
    results: Sequence[TrainResult], s: fastload.TrainConfig, dataset: Dataset, *, what: str, beside: str = ""
) -> None:
    """Print and write what the runs came to after their last epochs.

    Args:
        results: of the runs, all with an accuracy.
        s: their settings; `result.json` goes into its `output`, where each run has a folder.
        dataset: what they trained on.
        what: what the runs are, e.g. `mean of 10 runs`.
        beside: what to compare with, in words.
    """
    accuracies = [result.epochs[-1].accuracy or 0.0 for result in results]
    accuracy, deviation = mean(accuracies), pstdev(accuracies)
    seconds = sum(result.seconds for result in results)
    print(f"accuracy {accuracy:.2%} ({what}, deviation {deviation:.2%}); {seconds:.1f} s in all; {beside}".rstrip("; "))
    content = {
        "schema": "fastload-runs", "version": 1, "command": command(), **environment(),
        "data": {"name": dataset.source_name, "digest": dataset.digest, "train": len(dataset)},
        "what": what, "beside": beside, "accuracy": round(accuracy, 4), "deviation": round(deviation, 4),
        "accuracies": [round(a, 4) for a in accuracies], "seconds": round(seconds, 1), "config": shown_settings(s),
    }  # fmt: skip
    write_json(s.output / "result.json", content)
