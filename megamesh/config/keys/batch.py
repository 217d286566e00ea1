"""Keys of the batch."""

from pydantic import Field

from megamesh.config.keys.section import Section


class BatchConfig(Section):
    """Any two of the three (or one, with defaults of 1) give the third; batch.py does the arithmetic."""

    train_batch_size: int | None = Field(None, ge=1, description="Samples per optimizer step over all processes.")
    train_micro_batch_size_per_gpu: int | None = Field(
        None, ge=1, description="Samples per forward pass of one data-parallel rank."
    )
    gradient_accumulation_steps: int | None = Field(None, ge=1, description="Forward passes per optimizer step.")
