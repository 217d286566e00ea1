"""Metrics as one JSON object per line in `save/metrics.jsonl`: what plots and tables are made from.

A resumed run drops the lines beyond its checkpoint, so the file always tells one uninterrupted story.
"""

import json
import logging
import math
import os
from pathlib import Path
from typing import Any

from megamesh.training.trainer import Hook, Metrics, Trainer

log = logging.getLogger(__name__)
FILE_NAME = "metrics.jsonl"


class MetricsFileHook(Hook):
    """Appends every published Metrics to the file. A row that cannot be written (a full disk) is a warning, not the end of a run.

    Numbers that are not finite are written as null, which JSON has.
    """

    def __init__(self, save_folder: Path):
        self.path = save_folder / FILE_NAME

    def on_start(self, trainer: Trainer) -> None:
        step, finished = trainer.state.step, trainer.state.step >= trainer.train_iters
        kept = []
        for row in read_metrics(self.path) if self.path.exists() else []:
            evaluated_again = finished and row["kind"] in ("valid", "test")
            if row["step"] < step or (row["step"] == step and not evaluated_again):
                kept.append(row)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
        os.replace(temporary, self.path)

    def on_metrics(self, metrics: Metrics) -> None:
        values = {name: value if math.isfinite(value) else None for name, value in metrics.values.items()}
        try:
            with self.path.open("a") as file:
                file.write(json.dumps({"kind": metrics.kind, "step": metrics.step, **values}) + "\n")
        except OSError as error:
            log.warning(
                "%s: the %s metrics of step %d are lost: %s", self.path, metrics.kind, metrics.step, error.strerror
            )


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file in the order written; a last line cut short by a kill is left out."""
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
