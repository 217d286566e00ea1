"""Metrics as one JSON object per line in `save/metrics.jsonl`: what plots and tables are made from.

A resumed run drops the lines beyond its checkpoint, so the file always tells one uninterrupted story.
"""

import json
import os
from pathlib import Path
from typing import Any

from megamesh.training.trainer import Hook, Metrics, Trainer

FILE_NAME = "metrics.jsonl"


class MetricsFileHook(Hook):
    """Appends every published Metrics to the file."""

    def __init__(self, save_folder: Path):
        self.path = save_folder / FILE_NAME

    def on_start(self, trainer: Trainer) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = (
            [row for row in read_metrics(self.path) if row["step"] <= trainer.state.step] if self.path.exists() else []
        )
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
        os.replace(temporary, self.path)

    def on_metrics(self, metrics: Metrics) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"kind": metrics.kind, "step": metrics.step, **metrics.values}) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file in the order written; a last line cut short by a kill is left out."""
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
