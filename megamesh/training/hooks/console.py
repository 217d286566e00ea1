"""One line per log_interval, per evaluation, and per publication of any other hook, for people watching."""

import logging
import math
from collections.abc import Mapping
from datetime import timedelta

from megamesh.training.trainer import Hook, Metrics

log = logging.getLogger(__name__)
OTHER_COLUMNS = 8
"""Numbers without a column of their own that a line shows at most."""
EVALUATIONS = {"valid": "validation", "test": "test"}
TRAINING_COLUMNS = {
    "loss": "loss {:7.4f}",
    "learning_rate": "lr {:.2e}",
    "grad_norm": "grad norm {:6.3f}",
    "tokens_per_second": "{:,.0f} tokens/s",
    "tflops_per_device": "{:.3g} TFLOP/s per device",
    "mfu": "MFU {:.1%}",
    "loss_scale": "loss scale {:.10g}",
}
NOT_SHOWN = {"consumed_tokens", "skipped_steps", "seconds_left"}


class ConsoleHook(Hook):
    """Writes metrics to the log."""

    def __init__(self, train_iters: int):
        self.train_iters = train_iters

    def on_metrics(self, metrics: Metrics) -> None:
        log.info("step %*d/%d | %s", len(str(self.train_iters)), metrics.step, self.train_iters, line(metrics))


def line(metrics: Metrics) -> str:
    """What is shown of any metrics."""
    if metrics.kind == "train":
        return training_line(metrics.values)
    if metrics.kind in EVALUATIONS:
        return evaluation_line(metrics)
    return " | ".join([metrics.kind, *_others(metrics.values)])


def training_line(values: Mapping[str, float]) -> str:
    """Loss, rate, norm, speed and time left in fixed columns, then whatever else there is."""
    columns = [text.format(values[name]) for name, text in TRAINING_COLUMNS.items() if name in values]
    if values.get("skipped_steps"):
        columns.append(f"skipped {values['skipped_steps']:.0f}")
    if math.isfinite(values.get("seconds_left", math.nan)):
        columns.append(f"left {timedelta(seconds=round(values['seconds_left']))}")
    others = {name: value for name, value in values.items() if name not in NOT_SHOWN | TRAINING_COLUMNS.keys()}
    return " | ".join(columns + _others(others))


def evaluation_line(metrics: Metrics) -> str:
    """Loss and perplexity of a split, the loss of each of its parts, and whatever else there is."""
    rest = dict(metrics.values)
    rest.pop("consumed_tokens", None)
    name = EVALUATIONS[metrics.kind]
    columns = [f"{name} loss {rest.pop('loss'):.4f}" if "loss" in rest else name]
    if "perplexity" in rest:
        columns.append(f"perplexity {rest.pop('perplexity'):.2f}")
    if "seconds" in rest:
        columns.append(f"{rest.pop('seconds'):.1f} s")
    parts = [key for key in rest if key.startswith("loss/")]
    columns += [f"{key[5:]} {rest.pop(key):.4f}" for key in parts]
    return " | ".join(columns + _others(rest))


def _others(values: Mapping[str, float]) -> list[str]:
    """Numbers by their names; of many the first ones, and how many there are besides."""
    shown = [f"{name} {value:.4g}" for name, value in list(values.items())[:OTHER_COLUMNS]]
    return shown + ([f"and {len(values) - OTHER_COLUMNS} more"] if len(values) > OTHER_COLUMNS else [])
