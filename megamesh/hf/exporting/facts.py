"""What a checkpoint says of its training, for people: the second table of the model card.

Nothing here depends on how the run was laid out over processes, on where its files were, or on when it ran: the batch is what each step
consumed, not what a configuration made of the number of processes.
"""

from collections.abc import Mapping, Sequence
from pathlib import PurePath

from megamesh.checkpoint.meta import RunState
from megamesh.config.keys import DataConfig, OptimizerConfig
from megamesh.config.sections import RunConfig


def training_facts(state: RunState, versions: Mapping[str, str], run: RunConfig) -> dict[str, str]:
    """Texts by label. Of weights that were not trained (step 0) little is known."""
    tokenizer = [run.tokenizer.tokenizer_type, _base_names([run.tokenizer.vocab_file or ""])]
    about = {
        "tokenizer": " ".join(filter(None, tokenizer)),
        "software": ", ".join(f"{name} {version}" for name, version in sorted(versions.items())),
    }
    if state.step == 0:
        return {"steps": "0: the weights are as they were imported or converted"} | _known(about)
    length = run.model.sequence_length
    per_step = state.consumed_samples / state.step
    skipped = f", {state.skipped_steps:,} of them skipped (not finite)" if state.skipped_steps else ""
    facts = {
        "steps": f"{state.step:,}{skipped}",
        "tokens seen": f"{state.consumed_samples * length:,} ({state.consumed_samples:,} sequences of {length:,})",
        "batch": _batch(per_step, length),
        "optimizer": _optimizer(run.optimizer),
        "learning rate": _schedule(run.optimizer, run.training.train_iters),
        "precision": run.precision.precision,
        "dropout": _dropout(run),
        "seed": str(state.seed),
        "training data": _data(run.data),
    }
    return _known(facts | about)


def _optimizer(optimizer: OptimizerConfig) -> str:
    first, second = optimizer.betas
    parts = [
        str(optimizer.optimizer.get("type", "AdamW")),
        f"betas {first:g} and {second:g}",
        f"epsilon {optimizer.eps:g}",
        f"weight decay {optimizer.weight_decay:g}",
        f"gradient clipping {optimizer.gradient_clipping:g}" if optimizer.gradient_clipping else "no gradient clipping",
    ]
    return ", ".join(parts)


def _schedule(optimizer: OptimizerConfig, train_iters: int | None) -> str:
    steps = optimizer.lr_decay_iters or train_iters
    length = f"{steps:,} steps" if steps else "the run"
    shape = f"{optimizer.lr_decay_style} decay to {optimizer.min_lr:g} over {length}"
    if optimizer.lr_decay_style == "constant":
        shape = "constant"
    warmup = f", after a warm-up over {100 * optimizer.warmup:g}% of {length}" if optimizer.warmup else ""
    return f"{optimizer.peak_lr:g}, {shape}{warmup}"


def _dropout(run: RunConfig) -> str:
    rates = {"attention": run.model.attention_dropout, "states": run.model.hidden_dropout}
    return ", ".join(f"{kind} {rate:g}" for kind, rate in rates.items() if rate)


def _data(data: DataConfig) -> str:
    if data.train_data_paths is None:
        return f"{_base_names([data.data_path])} (split {data.split})" if data.data_path else ""
    if data.train_data_weights is None:
        return _base_names(data.train_data_paths)
    shares = zip(data.train_data_paths, data.train_data_weights, strict=True)
    return ", ".join(f"{_base_names([path])} (weight {weight:g})" for path, weight in shares)


def _base_names(paths: Sequence[str]) -> str:
    return ", ".join(PurePath(path).name for path in paths)


def _known(facts: Mapping[str, str]) -> dict[str, str]:
    return {label: text for label, text in facts.items() if text}


def _batch(num_sequences: float, length: int) -> str:
    if num_sequences == round(num_sequences):
        return f"{num_sequences * length:,.0f} tokens ({num_sequences:,.0f} sequences)"
    return f"{num_sequences * length:,.1f} tokens ({num_sequences:,.1f} sequences) on average"
