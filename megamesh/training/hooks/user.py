"""Hooks of the user: `hooks: [my_module:MyHook]`.

    module:name ──import, call without arguments──▶ a Hook ──▶ UserHook, which names it in its errors ──▶ the trainer's hooks

`name` is a subclass of Hook, or a function that makes a Hook. `megamesh/training/trainer.py` says what a hook finds.
"""

import inspect
import logging
from collections.abc import Callable, Sequence

from megamesh.config.own_code import import_own, tell_error
from megamesh.engine.engine import StepResult
from megamesh.errors import ConfigError, HookError
from megamesh.parallel.agree import first_to_say, largest_of_each
from megamesh.training.trainer import Hook, Metrics, Trainer

log = logging.getLogger(__name__)


def load_hooks(entries: Sequence[str]) -> list[Hook]:
    """The hooks that the configuration names, and what they need. Raises ConfigError with what is wrong with each of them."""
    hooks: list[Hook] = []
    problems: list[str] = []
    for entry in entries:
        try:
            hooks.append(UserHook(entry, _build(entry)))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return [*hooks, Agreement()] if hooks else []


def _build(entry: str) -> Hook:
    module, make = import_own(entry, f"hooks: {entry}")
    if not callable(make):
        candidates = [key for key, value in vars(module).items() if _is_hook_of(value, module.__name__)]
        mend = f"its hooks are: {', '.join(candidates)}" if candidates else "it defines no subclass of Hook"
        what = "there is no such name" if make is None else f"it is a {type(make).__name__}, not a class or function"
        raise ConfigError(f"hooks: {entry}: {what} in {module.__file__}; {mend}")
    try:
        hook = make()
    except Exception as error:
        raise ConfigError(
            f"hooks: {entry} cannot be built: {tell_error(error, module.__file__)}; it is called without arguments"
        ) from error
    if not isinstance(hook, Hook):
        raise ConfigError(
            f"hooks: {entry} makes a {type(hook).__name__}, which is no hook; derive it from megamesh.training.trainer.Hook"
        )
    return hook


def _is_hook_of(value: object, module_name: str) -> bool:
    return inspect.isclass(value) and issubclass(value, Hook) and value.__module__ == module_name


class Agreement(Hook):
    """Behind the hooks of the user: what one of them wants on any rank, all ranks do, as saving and stopping are done by all together.

    One small all-reduce in every step, in runs with such hooks only.
    """

    def after_step(self, trainer: Trainer, result: StepResult) -> None:
        saves, stops = largest_of_each([trainer.save_due, trainer.stop_reason is not None], trainer.engine.device)
        trainer.save_due = bool(saves)
        if stops and trainer.stop_reason is None:
            trainer.stop_reason = "a hook on another rank"


class UserHook(Hook):
    """Calls a hook of the user. What it raises becomes a HookError that names it, the moment and the place in its code."""

    def __init__(self, entry: str, hook: Hook):
        self.entry, self.hook = entry, hook
        self._file = inspect.getsourcefile(type(hook))

    def on_start(self, trainer: Trainer) -> None:
        self._call("on_start", trainer.state.step, lambda: self.hook.on_start(trainer))

    def after_step(self, trainer: Trainer, result: StepResult) -> None:
        self._call("after_step", trainer.state.step, lambda: self.hook.after_step(trainer, result))

    def on_metrics(self, metrics: Metrics) -> None:
        self._call("on_metrics", metrics.step, lambda: self.hook.on_metrics(metrics))

    def on_end(self, trainer: Trainer) -> None:
        self._call("on_end", trainer.state.step, lambda: self.hook.on_end(trainer))

    def on_error(self) -> None:
        """A failure here does not hide the error that ended training."""
        try:
            self.hook.on_error()
        except Exception as error:
            log.error("hook %s failed in on_error: %s", self.entry, tell_error(error, self._file))

    def _call(self, moment: str, step: int, work: Callable[[], None]) -> None:
        try:
            work()
        except HookError:  # of another hook, which is shown what this one publishes
            raise
        except Exception as error:
            told = tell_error(error, self._file)
            raise HookError(
                f"hook {self.entry} failed in {moment} of step {step}: {told}; mend it, or leave it out of `hooks`",
                first=first_to_say("hook-error"),
            ) from error
