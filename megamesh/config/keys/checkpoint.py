"""Keys of checkpoints: when, where, and what is read back."""

import os
from typing import Literal

from pydantic import Field

from megamesh.config.keys.section import Section

DEFAULT_MINUTES = 30.0


class CheckpointConfig(Section):
    """When checkpoints are written, where, and what is read back."""

    save: str | None = Field(None, description="Folder that checkpoints are written to.")
    load: str | None = Field(
        None,
        description="Run (its `latest`) or checkpoint to continue from. Default: save, so that the same command continues.",
    )
    checkpoint_factor: int | None = Field(
        None, ge=1, description="Steps between checkpoints (linear) or the growth factor of that distance (log)."
    )
    checkpoint_scale: Literal["linear", "log"] = Field(
        "linear", description="linear: every checkpoint_factor steps. log: at steps 1, factor, factor² …."
    )
    checkpoint_minutes: float | None = Field(
        None,
        ge=0,
        description="Minutes after the last save at which to save whatever the step; 0: never. Default: 30 where neither checkpoint_factor "
        "nor extra_save_iters is given. Such a checkpoint goes when the next one is complete; with keep_last_n_checkpoints it is "
        "one of the n.",
    )
    extra_save_iters: list[int] = Field(default_factory=list, description="Further steps at which to save.")
    keep_last_n_checkpoints: int | None = Field(
        None, ge=1, description="Delete all but the newest n. Default: keep all."
    )
    async_save: bool = Field(
        False,
        description="Write checkpoints while training goes on: it stops for a copy to host memory (12 bytes per parameter of a process).",
    )
    verify_checkpoint: bool = Field(
        True, description="Compare all that is loaded with the checksums of its checkpoint."
    )
    finetune: bool = Field(False, description="Read only the weights, and start at step 0.")
    no_load_optim: bool = Field(False, description="Do not read the optimizer's moments.")
    no_load_rng: bool = Field(
        False,
        description="Draw dropout from this run's seed. Default: from the seed of the checkpoint, also where seed is another now.",
    )

    @property
    def minutes_between_saves(self) -> float | None:
        """Minutes after which a save is due by time; None where none ever is."""
        if self.checkpoint_minutes is not None:
            return self.checkpoint_minutes or None
        by_steps = self.checkpoint_factor is not None or self.extra_save_iters
        return None if by_steps else DEFAULT_MINUTES

    @property
    def loads_itself(self) -> bool:
        """Whether `load` is the run's own folder, however it is spelled."""
        return None not in (self.load, self.save) and os.path.abspath(str(self.load)) == os.path.abspath(str(self.save))
