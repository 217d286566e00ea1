"""What a checkpoint says beside its tensors: meta.json, for people and programs alike.

global_step1000/
    .metadata            written last by torch.distributed.checkpoint: which file holds which box of which tensor
    __0_0.distcp …       one file per rank: fp32.<name>, exp_avg.<name>, exp_avg_sq.<name>
    meta.json            this module
    configs/*.yml        the YAML files that the run was started with
    checksums.json       of everything above
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from megamesh import __version__
from megamesh.config.sections import SECTIONS
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


def refuse_unknown(path: Path, keys: Sequence[str], written_by: str) -> None:
    """Raise CheckpointError where a file of a checkpoint holds keys that this version does not know: what they ask for would be lost."""
    if keys:
        raise CheckpointError(
            f"{path} was written by MegaMesh {written_by} and holds {', '.join(keys)}, which MegaMesh {__version__} does not know; "
            "update MegaMesh to read it"
        )


def _unknown(start: str, given: Any, known: type[Any]) -> list[str]:
    names = {entry.name for entry in fields(known)}
    return [f"{start}{key}" for key in given if key not in names] if isinstance(given, dict) else []


def _writer(values: dict[str, Any]) -> str:
    """The version that wrote a meta.json, as it says itself."""
    versions = values.get("versions")
    return (
        str(versions.get("megamesh", "(which does not say its version)"))
        if isinstance(versions, dict)
        else "(of no known version)"
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

    def refuse_newer_keys(self, path: Path) -> None:
        """Raise CheckpointError where the configuration has keys, or sections, that this version does not know."""
        known = {name: section.model_fields for name, section in SECTIONS.items()}
        unknown = [name for name in self.config if name not in known]
        for name, section in self.config.items():
            if name in known and isinstance(section, dict):
                unknown += [f"{name}.{key}" for key in section if key not in known[name]]
        refuse_unknown(path, unknown, self.written_by)

    @property
    def written_by(self) -> str:
        """The version of MegaMesh."""
        return _writer({"versions": self.versions})

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
                f"{path} has format {version!r}, of MegaMesh {_writer(values)}; MegaMesh {__version__} reads format {FORMAT_VERSION}: "
                "update it"
            )
        parts: dict[str, tuple[Any, type[Any]]] = {
            "": (values, cls),
            "state.": (values.get("state"), RunState),
            "loss_scale.": (values.get("loss_scale"), LossScale),
        }
        refuse_unknown(
            path,
            [key for start, (given, known) in parts.items() for key in _unknown(start, given, known)],
            _writer(values),
        )
        try:
            state, scale = RunState(**values.pop("state")), values.pop("loss_scale", None)
            loss_scale = LossScale(**scale) if scale is not None else None
            named = {entry.name: values[entry.name] for entry in fields(cls) if entry.name in values}
            for name in ("config", "versions", "layout"):
                if not isinstance(named[name], dict):
                    raise TypeError(f"{name} is no block of keys")
            return cls(state=state, loss_scale=loss_scale, **named)
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{path} is damaged: {error}") from None
