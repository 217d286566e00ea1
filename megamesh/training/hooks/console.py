"""One line per log_interval and per evaluation, for people watching."""

import logging
from datetime import timedelta

from megamesh.training.trainer import Hook, Metrics

log = logging.getLogger(__name__)


class ConsoleHook(Hook):
    """Writes metrics to the log."""

    def __init__(self, train_iters: int):
        self.train_iters = train_iters

    def on_metrics(self, metrics: Metrics) -> None:
        text = training_line(metrics.values) if metrics.kind == "train" else evaluation_line(metrics)
        log.info("step %*d/%d | %s", len(str(self.train_iters)), metrics.step, self.train_iters, text)


def training_line(values: dict[str, float]) -> str:
    """Loss, rate, norm, speed and time left in fixed columns."""
    columns = [
        f"loss {values['loss']:7.4f}",
        f"lr {values['learning_rate']:.2e}",
        f"grad norm {values['grad_norm']:6.3f}",
        f"{values['tokens_per_second']:,.0f} tokens/s",
        f"{values['tflops_per_device']:.3g} TFLOP/s per device",
    ]
    if "mfu" in values:
        columns.append(f"MFU {values['mfu']:.1%}")
    if "loss_scale" in values:
        columns.append(f"loss scale {values['loss_scale']:.10g}")
    if values["skipped_steps"]:
        columns.append(f"skipped {values['skipped_steps']:.0f}")
    columns.append(f"left {timedelta(seconds=round(values['seconds_left']))}")
    return " | ".join(columns)


def evaluation_line(metrics: Metrics) -> str:
    """Loss and perplexity of a split, and the loss of each of its parts."""
    values = metrics.values
    name = {"valid": "validation", "test": "test"}[metrics.kind]
    parts = "".join(f" | {key[5:]} {value:.4f}" for key, value in values.items() if key.startswith("loss/"))
    return (
        f"{name} loss {values['loss']:.4f} | perplexity {values['perplexity']:.2f} | {values['seconds']:.1f} s{parts}"
    )
