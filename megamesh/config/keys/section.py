"""What every section of keys has in common."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A frozen group of keys; an unknown key or a value of the wrong type is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, protected_namespaces=(), allow_inf_nan=False)
