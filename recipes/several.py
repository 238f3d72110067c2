"""What several runs of one recipe share: a folder, and what they come to, said and written to `result.json`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import mean, pstdev
from typing import TypeVar

import fastload
from fastload.formats import Dataset
from fastload.profiling.report import described, write_json
from fastload.results import TrainResult, make_output, shown_settings

Config = TypeVar("Config", bound=fastload.TrainConfig)


def in_new_folder(s: Config) -> Config:
    """Return settings with the folder of all their runs, made; without `resume`, one without an earlier run's results.

    Raises:
        ConfigError: it cannot be made.
    """
    trainer = fastload.Trainer(s)  # made first: it sets the processes up
    return replace(s, output=make_output(s, trainer.is_main))


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
        "schema": "fastload-runs", "version": 1, **described(),
        "data": {"name": dataset.source_name, "digest": dataset.digest, "train": len(dataset)},
        "what": what, "beside": beside, "accuracy": round(accuracy, 4), "deviation": round(deviation, 4),
        "accuracies": [round(a, 4) for a in accuracies], "seconds": round(seconds, 1), "config": shown_settings(s),
    }  # fmt: skip
    write_json(s.output / "result.json", content)
