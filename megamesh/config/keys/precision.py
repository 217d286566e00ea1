"""Keys of number formats and of the loss scale."""

from typing import Literal

from pydantic import Field

from megamesh.config.keys.section import Section


class PrecisionConfig(Section):
    """Number format of weights and activations; gradients accumulate and the optimizer works in fp32 always.

    In fp16 the loss is multiplied by a scale before backward; the other keys say which, and have no effect in another precision.
    """

    precision: Literal["fp32", "fp16", "bfloat16"] = Field(
        "bfloat16", description="Number format of weights and activations."
    )
    loss_scale: float = Field(0.0, ge=0, description="fp16: the scale. 0: dynamic, as the four keys below say.")
    initial_scale_power: int = Field(16, ge=0, le=64, description="fp16, dynamic: the scale starts at 2 to this power.")
    loss_scale_window: int = Field(
        1000, ge=1, description="fp16, dynamic: steps without overflow after which the scale doubles."
    )
    hysteresis: int = Field(
        2,
        ge=1,
        description="fp16, dynamic: the scale halves at the n-th overflow and at each one after it, until it has doubled again.",
    )
    min_loss_scale: float = Field(1.0, gt=0, le=2.0**64, description="fp16, dynamic: the scale never falls below.")

    @property
    def bytes_per_value(self) -> int:
        """Bytes of one weight or activation."""
        return 4 if self.precision == "fp32" else 2
