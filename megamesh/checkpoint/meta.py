"""What a checkpoint says beside its tensors: meta.json, for people and programs alike.

global_step1000/
    .metadata            written last by torch.distributed.checkpoint: which file holds which box of which tensor
    __0_0.distcp …       one file per rank: fp32.<name>, exp_avg.<name>, exp_avg_sq.<name>
    meta.json            this module
    configs/*.yml        the YAML files that the run was started with
    checksums.json       of everything above
"""

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from megamesh.engine.loss_scale import LossScale
from megamesh.errors import CheckpointError

FORMAT_VERSION = 1
META_FILE = "meta.json"
CONFIGS_FOLDER = "configs"


@dataclass(frozen=True)
class RunState:
    """Where a run stands. Dropout is keyed by `seed` and sample indices, so there are no streams to keep."""

    step: int  # optimizer steps done, skipped ones counted
    consumed_samples: int
    seed: int
    skipped_steps: int = 0  # steps that changed nothing, because loss or gradient were not finite
    # Of those since the last step that was taken, without overflows of a dynamic loss scale.
    consecutive_skipped_steps: int = 0

    def after_step(self, num_samples: int, *, skipped: bool, overflowed: bool = False) -> "RunState":
        """The state after one more optimizer step on `num_samples` samples; `overflowed` as in StepResult."""
        broken = skipped and not overflowed
        return replace(
            self,
            step=self.step + 1,
            consumed_samples=self.consumed_samples + num_samples,
            skipped_steps=self.skipped_steps + skipped,
            consecutive_skipped_steps=self.consecutive_skipped_steps + broken if skipped else 0,
        )


@dataclass(frozen=True)
class CheckpointMeta:
    """meta.json. `optimizer_step` counts Adam's steps: skipped ones do not count. `loss_scale` is None unless it is dynamic.

    `until_next`: saved only since time had passed, and to be removed when the next checkpoint is complete.
    """

    state: RunState
    optimizer_step: int
    config: dict[str, Any]
    versions: dict[str, str]
    layout: dict[str, int]  # of the run that wrote it; any other layout may read it
    loss_scale: LossScale | None = None
    until_next: bool = False
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str, path: Path) -> "CheckpointMeta":
        """Raises CheckpointError, naming the path, where the text is damaged or of another format."""
        try:
            values = json.loads(text)
            version = values["format_version"]
        except (ValueError, TypeError, KeyError):
            raise CheckpointError(f"{path} is damaged: it is not the JSON object that a checkpoint has") from None
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"{path} has format {version!r}; this version of MegaMesh reads format {FORMAT_VERSION}"
            )
        try:
            state, scale = RunState(**values.pop("state")), values.pop("loss_scale", None)
            loss_scale = LossScale(**scale) if scale is not None else None
            named = {entry.name: values[entry.name] for entry in fields(cls) if entry.name in values}
            return cls(state=state, loss_scale=loss_scale, **named)
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{path} is damaged: {error}") from None
