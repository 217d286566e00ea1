"""Keys of what is shown while training."""

from pydantic import Field

from megamesh.config.keys.section import Section


class LogConfig(Section):
    """What is shown while training."""

    log_interval: int = Field(100, ge=1, description="Steps between lines on the console and points in TensorBoard.")
    tensorboard_dir: str | None = Field(None, description="Folder for TensorBoard event files. None: no TensorBoard.")
    peak_tflops: float | None = Field(
        None,
        gt=0,
        description="Dense peak of one device in TFLOP/s, for MFU. Default: known for common GPUs; else no MFU.",
    )
