"""How long a block, the head and a loop boundary take on one GPU: from FLOPs at a stated efficiency, or as measured.

    FLOPs per token (model/flops.py) ÷ (peak · efficiency)   or   {"block_forward": …, …} seconds per sequence  ──▶ Speed

Both are taken to be proportional to the number of tokens and to 1/tp, so that they know nothing of small matrices that fill a GPU badly,
nor of the memory's bandwidth: measured numbers are only as good as they were taken near the micro-batch and tp in question.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from megamesh.config.sections import RunConfig
from megamesh.errors import ConfigError
from megamesh.model.flops import TRAINING_TO_FORWARD
from megamesh.pipeline.partition import forward_costs

KEYS = ("block_forward", "block_backward", "head", "boundary_forward", "boundary_backward")
OPTIONAL_KEYS = KEYS[3:]


@dataclass(frozen=True)
class Speed:
    """Seconds for one sequence of the training length on one GPU that holds all heads; the head's with its gradients."""

    block_forward: float
    block_backward: float
    head: float
    boundary_forward: float = 0.0
    boundary_backward: float = 0.0


def speed_from_flops(run: RunConfig, padded_vocab_size: int, peak_tflops: float, efficiency: float) -> Speed:
    """Backward has twice the FLOPs of forward; a GPU does `efficiency` (0 to 1) of its dense peak in all of them."""
    costs = forward_costs(run.model, run.recursion, padded_vocab_size)
    per_flop = run.model.sequence_length / (peak_tflops * 1e12 * efficiency)
    backward = TRAINING_TO_FORWARD - 1
    return Speed(
        costs.block * per_flop,
        backward * costs.block * per_flop,
        TRAINING_TO_FORWARD * costs.head * per_flop,
        costs.boundary * per_flop,
        backward * costs.boundary * per_flop,
    )


def speed_from_layer_seconds(run: RunConfig, padded_vocab_size: int, forward: float, backward: float) -> Speed:
    """A block's seconds as given; head and loop boundary at the same FLOPs per second as the block's forward and backward together."""
    costs = forward_costs(run.model, run.recursion, padded_vocab_size)
    per_flop = (forward + backward) / (TRAINING_TO_FORWARD * costs.block)
    boundary = costs.boundary * per_flop
    return Speed(
        forward,
        backward,
        TRAINING_TO_FORWARD * costs.head * per_flop,
        boundary,
        (TRAINING_TO_FORWARD - 1) * boundary,
    )


def read_measured(path: Path) -> Speed:
    """A JSON object with the fields of `Speed`; ConfigError where it is none."""
    try:
        given = json.loads(path.read_text())
        unknown = [key for key in given if key not in KEYS] + [
            key for key in KEYS if key not in given and key not in OPTIONAL_KEYS
        ]
        if unknown or not all(isinstance(value, int | float) and value >= 0 for value in given.values()):
            raise ValueError(f"see {', '.join(unknown)}" if unknown else "a number of seconds is wrong")
        return Speed(**given)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"--measured {path} is not a JSON object of seconds per sequence with {', '.join(KEYS)}: {error}"
        ) from error
