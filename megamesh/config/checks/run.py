"""Rules of the run: batch sizes, length, recomputation, compilation."""

from collections.abc import Iterator

from megamesh.config.rule import Given, Rule, either, rule, show_value

BATCH_KEYS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")


@rule(*BATCH_KEYS)
def batch_sizes_agree(given: Given) -> Iterator[str]:
    """Whatever the data-parallel size will be, the train batch is a multiple of what one rank does per step."""
    batch = given.run.batch
    per_rank = (batch.train_micro_batch_size_per_gpu or 1) * (batch.gradient_accumulation_steps or 1)
    if batch.train_batch_size is not None and batch.train_batch_size % per_rank:
        factors = " × ".join(given.show(key) for key in BATCH_KEYS[1:] if given.has(key))
        product = f"{factors} = {per_rank}" if "×" in factors else factors
        below, above = (batch.train_batch_size // per_rank + more for more in (0, 1))
        multiples = either([count * per_rank for count in (below, above) if count])
        yield (
            f"{given.show('train_batch_size')} is not a multiple of {product}; "
            f"use train_batch_size: {multiples}, or leave it out"
        )


@rule(*BATCH_KEYS, for_training=True)
def batch_is_given(given: Given) -> Iterator[str]:
    if not any(given.has(key) for key in BATCH_KEYS):
        yield f"no batch size is given; write {BATCH_KEYS[0]} (all processes) or {BATCH_KEYS[1]} (one process)"


@rule("train_iters", "train_epochs")
def length_is_said_once(given: Given) -> Iterator[str]:
    if given.has("train_iters") and given.has("train_epochs"):
        yield f"{given.show('train_iters')} and {given.show('train_epochs')} both say how long the run is; keep one"


@rule("train_iters", "train_epochs", for_training=True)
def length_is_given(given: Given) -> Iterator[str]:
    if not given.has("train_iters") and not given.has("train_epochs"):
        yield "the length of the run is not given; write train_iters (steps) or train_epochs (passes over the training data)"


@rule("checkpoint_activations_per", "recursion")
def loop_recomputation_needs_recursion(given: Given) -> Iterator[str]:
    if given.run.training.checkpoint_activations_per == "loop" and given.run.recursion.recursion is None:
        yield f"{given.show('checkpoint_activations_per')} needs recursion; use checkpoint_activations_per: block"


@rule("compile", "zero_optimization")
def compiled_blocks_hold_their_weights(given: Given) -> Iterator[str]:
    """DeepSpeed 0.19 gathers weights in hooks on every layer, which torch compiles one by one, again and again."""
    if given.run.training.compile and given.run.optimizer.zero_optimization.get("stage") == 3:
        yield (
            f"{given.show('compile')} does not work with ZeRO stage 3 ({given.places.get('zero_optimization', 'default')}), which gathers "
            "weights inside the blocks; use compile: false, or stage 0, 1 or 2"
        )


@rule("hooks")
def hooks_have_places(given: Given) -> Iterator[str]:
    for entry in given.run.training.hooks:
        module, _, name = entry.partition(":")
        if not (name.isidentifier() and all(part.isidentifier() for part in module.split("."))):
            place = given.places.get("hooks", "default")
            yield f"hooks={show_value(entry)} ({place}) is not module:name; write e.g. my_module:MyHook"


RUN_RULES: tuple[Rule, ...] = (
    batch_sizes_agree,
    batch_is_given,
    length_is_said_once,
    length_is_given,
    loop_recomputation_needs_recursion,
    compiled_blocks_hold_their_weights,
    hooks_have_places,
)
