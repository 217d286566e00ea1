"""The errors that a user can mend. Each message names the key or file, the value found, and what to write instead."""


class MegaMeshError(Exception):
    """Base of every error that MegaMesh raises on purpose; tools print its text without a traceback and exit with status 1."""


class ConfigError(MegaMeshError):
    """A configuration that cannot be run: all problems found are reported together, one line each."""

    def __init__(self, problems: str | list[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class DataError(MegaMeshError):
    """A corpus, index or tokenizer file that is missing, damaged or does not fit the model."""


class CheckpointError(MegaMeshError):
    """A checkpoint or export that is missing, damaged, incomplete or of another architecture."""


class TrainingError(MegaMeshError):
    """A run that had to stop: for example, too many non-finite steps in a row."""


class HookError(TrainingError):
    """A hook of the user that raised. `first`: no other rank has met one, so that this one's is told."""

    def __init__(self, text: str, *, first: bool = True):
        super().__init__(text)
        self.first = first
