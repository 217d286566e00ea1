"""Gradient and weight norms of the model's parts, every ten steps, on any layout of ranks.

    PYTHONPATH=examples/hooks deepspeed tools/train.py model.yml site.yml --set 'hooks=[gradient_norms:GradientNorms]'

They appear on the console, in TensorBoard (gradients/core, weights/core, …) and in save/metrics.jsonl, as rows of these kinds.
"""

from collections.abc import Mapping

from megamesh.engine.engine import StepResult
from megamesh.training.hooks.sharded import combined_norm, norms_of_state
from megamesh.training.trainer import Hook, Metrics, Trainer

INTERVAL = 10


class GradientNorms(Hook):
    """Publishes one number per part: embedding, prelude, core, coda, routers, final_norm, head."""

    def after_step(self, trainer: Trainer, result: StepResult) -> None:
        step = trainer.state.step
        if step % INTERVAL:
            return
        # Every step has the gradients' norms, whatever the layout. Those of the weights are asked for, by all ranks.
        trainer.publish(Metrics("gradients", step, by_part(result.grad_norms)))
        trainer.publish(Metrics("weights", step, by_part(norms_of_state(trainer.engine))))


def by_part(norms: Mapping[str, float]) -> dict[str, float]:
    """Norms of parameters → norms of the parts that their names begin with."""
    parts: dict[str, list[float]] = {}
    for name, norm in norms.items():
        parts.setdefault(name.split(".")[0], []).append(norm)
    return {part: combined_norm(found) for part, found in parts.items()}
