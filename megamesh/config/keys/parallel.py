"""Keys of the layout: how the model is divided over processes."""

from typing import Literal

from pydantic import Field

from megamesh.config.keys.section import Section


class ParallelConfig(Section):
    """How the model is divided over processes."""

    pipe_parallel_size: int = Field(0, ge=0, description="Pipeline ranks; 0 and 1 both mean no pipeline.")
    pipe_partition_method: str = Field(
        "cost",
        description="Which layers live on which pipeline rank: cost (balances layers and head), uniform (balances numbers of layers; "
        "type:transformer|mlp is the same), parameters, or the numbers themselves, pass by pass: 1,3+4,4+3,1 for 4+8R2+4 on two ranks.",
    )
    pipe_num_passes: int | None = Field(
        None,
        ge=1,
        description="How often a micro-batch of a model without recursion goes round the pipeline ranks (virtual stages per rank); "
        "default 1. With recursion: once per prelude, loop and coda.",
    )
    pipe_schedule: Literal["interleaved_1f1b", "looped_bfs"] = Field(
        "interleaved_1f1b",
        description="Order of forward and backward passes: interleaved_1f1b keeps few micro-batches' activations, looped_bfs all.",
    )
    model_parallel_size: int = Field(
        1, ge=1, description="Tensor-parallel ranks: heads, MLP columns and vocabulary are split over them."
    )
    sequence_parallel: bool = Field(
        False,
        description="Split the states between blocks over the tensor-parallel ranks by tokens, and with them norms, dropout and routers.",
    )
