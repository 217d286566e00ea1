"""Keys of checkpoints: when, where, and what is read back."""

import os
from typing import Literal

from pydantic import Field

from megamesh.config.keys.section import Section


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
    def loads_itself(self) -> bool:
        """Whether `load` is the run's own folder, however it is spelled."""
        return None not in (self.load, self.save) and os.path.abspath(str(self.load)) == os.path.abspath(str(self.save))
