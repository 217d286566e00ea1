"""Rules of checkpoints: when they are written, and what is read."""

from collections.abc import Iterator

from megamesh.config.rule import Given, Rule, rule


@rule("checkpoint_scale", "checkpoint_factor")
def log_scale_grows(given: Given) -> Iterator[str]:
    factor = given.run.checkpoint.checkpoint_factor
    if given.run.checkpoint.checkpoint_scale == "log" and (factor is None or factor == 1):
        yield f"{given.show('checkpoint_scale')} saves at powers of checkpoint_factor; write checkpoint_factor: 2 or more"


@rule("extra_save_iters")
def extra_saves_are_steps(given: Given) -> Iterator[str]:
    if any(step < 0 for step in given.run.checkpoint.extra_save_iters):
        yield f"{given.show('extra_save_iters')} holds a negative step; steps start at 0"


@rule("finetune", "no_load_optim", "no_load_rng", "load", "save")
def loading_has_a_source(given: Given) -> Iterator[str]:
    checkpoint = given.run.checkpoint
    if checkpoint.finetune and checkpoint.load is None:
        yield f"{given.show('finetune')} needs load, the folder of the weights to start from"
    if checkpoint.finetune and checkpoint.loads_itself:
        yield f"{given.show('load')} and save are one folder, so that a restart with finetune would begin again; use another save"
    for key in ("no_load_optim", "no_load_rng"):
        if getattr(checkpoint, key) and checkpoint.load is None and checkpoint.save is None:
            yield f"{given.show(key)} has no effect without load; add load or remove it"


@rule("async_save", "checkpoint_minutes", "save")
def saves_go_somewhere(given: Given) -> Iterator[str]:
    checkpoint = given.run.checkpoint
    for key in ("async_save", "checkpoint_minutes"):
        if getattr(checkpoint, key) and checkpoint.save is None:
            yield f"{given.show(key)} has no effect without save; add save or remove it"


CHECKPOINT_RULES: tuple[Rule, ...] = (
    log_scale_grows,
    extra_saves_are_steps,
    loading_has_a_source,
    saves_go_somewhere,
)
