"""A recursive model from a checkpoint of a plain one, as the checkpoint that a new run starts with.

    source checkpoint ──its layers, one tensor at a time──▶ mean of those behind each block ─┐
    recursion, scheme ──▶ Seeds (seeds.py), routers near plain recursion (model/init.py) ─────┴▶ output/global_step0, weights only
    source's configuration, other layers ──▶ upcycled.yml ──load_text──▶ the configuration inside, checked

Contract: embeddings, norms, head and every block that stands for one layer are the source's bit for bit; means are taken in float64 and
rounded once. Beside one tensor of the result (in float64 where it is a mean), one of the source is in memory.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megamesh.checkpoint.folder import find_latest
from megamesh.checkpoint.inference import OpenCheckpoint, load_model
from megamesh.checkpoint.reader import read_weights
from megamesh.checkpoint.weights import save_weights
from megamesh.config.load import LoadedConfig, load_text
from megamesh.config.recursion import parse_recursion
from megamesh.config.schemes import PLAIN, scheme_class
from megamesh.config.sections import SECTIONS, RunConfig
from megamesh.config.yaml_files import yaml_text
from megamesh.errors import CheckpointError, ConfigError
from megamesh.evaluation.text_loss import TextLoss, text_loss
from megamesh.model.counts import ParameterCounts, count_parameters, parameter_shapes
from megamesh.model.init import plain_value
from megamesh.upcycling.seeds import Seeds, choose_seeds

log = logging.getLogger(__name__)
CONFIG_NAME = "upcycled.yml"
LEFT_OUT = {
    "attention_config",  # of the source's number of layers; null means the same for any
    "save", "load", "finetune", "no_load_optim", "no_load_rng", "override_lr_scheduler", "extra_save_iters", "tensorboard_dir",
}  # fmt: skip
"""Keys of the source's run that are not the new run's, beside all that say how it was divided over processes."""
_HEADER = """\
# Upcycled from {source} (step {step}) by tools/upcycle.py, the core from {core_from}.
#
# Train on from it, on any layout. What the source's run said of data, batch size, length and optimizer stands here too: replace single keys
# with --set, or take them out and say them, and what is missing, in a second file. The run starts at step 0, with new moments.
# The tokenizer is the source's, where it lies: keep that folder, or name another place with --set vocab_file=FILE.

"""


@dataclass(frozen=True)
class Upcycling:
    """What is to be built, before any tensor is read."""

    source: OpenCheckpoint
    seeds: Seeds
    loaded: LoadedConfig

    @property
    def run(self) -> RunConfig:
        return self.loaded.run

    def parameters(self) -> tuple[ParameterCounts, ParameterCounts]:
        """Of the source and of the recursive model."""
        return (
            count_parameters(self.source.run.model, self.source.run.recursion, self.source.vocab_size),
            count_parameters(self.run.model, self.run.recursion, self.source.vocab_size),
        )


def plan_upcycling(
    source: OpenCheckpoint, output: Path, recursion: Mapping[str, Any], core_from: str, **tokenizer: str | None
) -> Upcycling:
    """Check all that can be wrong. `recursion` holds the recursion's keys, `tokenizer` those of a tokenizer that has moved.

    What is not said of the scheme, it chooses so as to start near plain recursion. Raises ConfigError, and CheckpointError for an output
    that holds a checkpoint.
    """
    if source.run.recursion.recursion is not None:
        raise ConfigError(
            f"{source.path} is recursive already (recursion={source.run.recursion.recursion}); name a checkpoint of a plain model"
        )
    if find_latest(output) is not None:
        raise CheckpointError(f"{output} already holds a checkpoint; name a folder that does not exist")
    layout = parse_recursion(recursion["recursion"])
    seeds = choose_seeds(layout, source.run.model.num_layers, core_from)
    shape = {"num_layers": layout.compute_depth, "max_position_embeddings": source.run.model.longest_sequence}
    values = _run_keys(source.run) | shape | _recursion_keys(recursion)
    values |= {key: value for key, value in tokenizer.items() if value} | {"load": str(output.absolute())}
    text = _yaml(values, source, core_from)
    loaded = load_text(text, CONFIG_NAME, for_training=False)
    return Upcycling(source, seeds, loaded)


def write_upcycled(plan: Upcycling, output: Path) -> Path:
    """Write the checkpoint; returns its path. CheckpointError where the source is damaged or the output cannot be written."""
    run = plan.run
    shapes = parameter_shapes(run.model, run.recursion, plan.source.vocab_size)
    read = _reader(plan, shapes)
    config = run.model_dump(mode="json")
    path = save_weights(output, shapes, read, config=config, sources=plan.loaded.sources, seed=run.training.seed)
    log.info("wrote %s", path)
    return path


def losses(
    opened: OpenCheckpoint, windows: Sequence[Sequence[int]], device: torch.device
) -> list[tuple[str, TextLoss]]:
    """What the model is called, and its loss in fp32; of a recursive one also under plain recursion, its routers left out."""
    recursion = opened.run.recursion
    if recursion.recursion is None:
        return [("source", _loss(opened, windows, device))]
    name = f"{recursion.recursion} {recursion.recursion_scheme}"
    found = [(name, _loss(opened, windows, device))]
    if recursion.recursion_scheme != PLAIN:
        plain = recursion.model_copy(update={"recursion_scheme": PLAIN, "recursion_scheme_params": None})
        as_base = replace(opened, run=opened.run.model_copy(update={"recursion": plain}))
        found.append((f"{recursion.recursion} {PLAIN}, the same weights", _loss(as_base, windows, device)))
    return found


def _loss(opened: OpenCheckpoint, windows: Sequence[Sequence[int]], device: torch.device) -> TextLoss:
    return text_loss(load_model(opened, device, torch.float32), windows)


def _reader(plan: Upcycling, shapes: Mapping[str, tuple[int, ...]]) -> Callable[[str], Tensor]:
    """Gives the parameters in the order of `shapes`, from one pass over what they need of the source."""
    needed = (name for target in shapes for name in plan.seeds.source_names(target))
    tensors = read_weights(plan.source.path, needed)

    def read(name: str) -> Tensor:
        if count := len(plan.seeds.source_names(name)):
            return mean_of(tensors, count)
        return plain_value(name, shapes[name], plan.run.model, plan.run.recursion, plan.run.training.seed)

    return read


def mean_of(tensors: Iterator[tuple[str, Tensor]], count: int) -> Tensor:
    """The mean of the next `count` tensors, in fp32; of a single one, itself."""
    _, first = next(tensors)
    if count == 1:
        return first
    total = first.double()
    del first
    for _ in range(count - 1):
        total += next(tensors)[1]
    total /= count
    return total.float()


def _recursion_keys(given: Mapping[str, Any]) -> dict[str, Any]:
    """The recursion's keys that were given, and what the scheme adds to start near plain recursion."""
    keys = {key: value for key, value in given.items() if value is not None}
    chosen: dict[str, Any] = scheme_class(keys["recursion_scheme"]).upcycled_keys(keys)
    return chosen


def _run_keys(run: RunConfig) -> dict[str, Any]:
    """What the source's run said and the new one's shall say too."""
    return {
        key: value
        for name in SECTIONS
        if name not in ("parallel", "recursion")
        for key, value in getattr(run, name).model_dump(mode="json", exclude_defaults=True).items()
        if key not in LEFT_OUT
    }


def _yaml(values: Mapping[str, Any], source: OpenCheckpoint, core_from: str) -> str:
    lines = (f"{key}: {yaml_text(value)}" for key, value in values.items())
    return _HEADER.format(source=source.path, step=source.step, core_from=core_from) + "\n".join(lines) + "\n"
