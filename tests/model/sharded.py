"""A model divided over the tensor axis beside the same model whole, on the processes of tests/distributed.py."""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megamesh.config.keys import ModelConfig, RecursionConfig, TrainingConfig
from megamesh.model.build import build_model
from megamesh.model.transformer import Transformer
from megamesh.parallel.mesh import ProcessMesh
from megamesh.parallel.shards import ShardSpec
from megamesh.parallel.tensor import SINGLE, TensorParallel

VOCAB, PADDED_VOCAB, SEQUENCE, BATCH = 61, 64, 8, 2  # not a multiple of anything: the padding must not matter

BLOCKS: dict[str, dict[str, Any]] = {
    "MHA, sequential": {"no_weight_tying": True},
    "MHA, parallel": {"gpt_j_residual": True, "no_weight_tying": True},
    "GQA, gated": {
        "num_kv_heads": 4,
        "norm": "rmsnorm",
        "activation": "swiglu",
        "intermediate_size": 88,
        "use_bias_in_attn_linear": False,
        "use_bias_in_mlp": False,
        "no_weight_tying": True,
    },
    "tied, learned positions, qk norm": {
        "pos_emb": "learned",
        "use_qk_layernorm": True,
        "gpt_j_residual": True,
        "gpt_j_tied": True,
        "scale_embeddings": True,
    },
}


@dataclass(frozen=True)
class Case:
    """One model, and how it is divided."""

    scheme: str | None = "mesh"
    blocks: str = "MHA, sequential"
    sequence_parallel: bool = False
    training: dict[str, Any] = field(default_factory=dict)
    dropout: float = 0.0

    @property
    def recursion(self) -> RecursionConfig:
        if self.scheme is None:
            return RecursionConfig()
        return RecursionConfig(recursion="1+2R3+1", recursion_scheme=self.scheme)

    @property
    def model(self) -> ModelConfig:
        keys: dict[str, Any] = {"pos_emb": "rotary", "rotary_pct": 0.5} | BLOCKS[self.blocks]
        return ModelConfig(
            num_layers=8 if self.scheme else 2,
            hidden_size=32,
            num_attention_heads=8,
            max_position_embeddings=SEQUENCE,
            attention_dropout=self.dropout,
            hidden_dropout=self.dropout,
            **keys,
        )

    def axis(self) -> TensorParallel:
        mesh = ProcessMesh.build("cpu", tensor_parallel_size=dist.get_world_size())
        return TensorParallel.on(mesh, sequence_parallel=self.sequence_parallel)

    def build(self, tp: TensorParallel = SINGLE, dtype: torch.dtype = torch.float64) -> Transformer:
        return build_model(
            self.model,
            self.recursion,
            TrainingConfig(seed=5, loss_chunk_tokens=6, **self.training),
            VOCAB,
            dtype=dtype,
            padded_vocab_size=PADDED_VOCAB if tp.size > 1 else None,
            tp=tp,
        )


def batch(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, labels and a mask with holes."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, VOCAB, (BATCH, SEQUENCE + 1), generator=generator)
    return tokens[:, :-1], tokens[:, 1:], (torch.rand(BATCH, SEQUENCE, generator=generator) > 0.2).float()


def loss_and_gradients(module: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    loss = module(*batch())
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in module.named_parameters()}


def gather(local: dict[str, Tensor], specs: dict[str, ShardSpec], *, gradients: bool) -> dict[str, Tensor]:
    """Global tensors from every rank's part."""
    return {
        name: join_shards(tensor, specs[name], partial=gradients and specs[name].partial_gradient)
        for name, tensor in local.items()
    }


def join_shards(
    local: Tensor, spec: ShardSpec, group: dist.ProcessGroup | None = None, *, partial: bool = False
) -> Tensor:
    """The global tensor of every tensor rank's part: not the product's way, hence a check on it. Copies must be the same, bit for bit."""
    if spec.dim is None and not partial:
        copies = [torch.empty_like(local) for _ in range(dist.get_world_size(group))]
        dist.all_gather(copies, local, group=group)
        assert all(torch.equal(copy, local) for copy in copies), f"{spec.name} differs between tensor ranks"
        return local
    whole = local.clone() if spec.dim is None else torch.zeros(spec.global_shape, dtype=local.dtype)
    for block in spec.blocks:
        assert spec.dim is not None
        part = local.narrow(spec.dim, block.local_start, block.length)
        whole.narrow(spec.dim, block.global_start, block.length).copy_(part)
        padding = local.narrow(spec.dim, block.length, local.shape[spec.dim] - block.length)
        assert len(spec.blocks) > 1 or not padding.any(), f"{spec.name}: padding is not zero"
    dist.all_reduce(whole, group=group)
    return whole
