"""A decoder-only transformer whose middle may recur.

    tokens ──embedding──▶ h_emb ──prelude──▶ h_pre ──enter──▶ h(0) ─┐
                                            ┌───────────────────────┘
                                            └▶ core ──▶ h_m(t) ──advance──▶ h(t+1)   K times, the core's weights shared or not
    h(K) ──coda──▶ final norm ──head──▶ loss or logits

A plain stack is the same with all its blocks in the prelude and no loop. Parameter names do not depend on how the model is
laid out over processes; checkpoints are keyed by them. States between blocks are [T, D], T = B·S tokens, batch-major: under sequence
parallelism this rank's T/size of them. The tensor axis comes in through the constructor; of size 1 it changes nothing. Of a model that is
cut over pipeline ranks, `keep_only` leaves each its modules, by their names in the whole; `megamesh/pipeline/` runs them.

Letters: B batch, S sequence, T tokens, D hidden size, V vocabulary (without padding), K loops.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from megamesh.config.keys import ModelConfig, RecursionConfig
from megamesh.config.recursion import RecursionLayout
from megamesh.config.schemes import PLAIN
from megamesh.model.attention import KeyValueCache, attention_inputs
from megamesh.model.block import StateDropout, build_block
from megamesh.model.embedding import TokenEmbedding
from megamesh.model.head import Head
from megamesh.model.norms import build_norm
from megamesh.model.recompute import Recompute
from megamesh.model.recursion.highway import Highway
from megamesh.model.recursion.scheme import build_routers, build_scheme
from megamesh.parallel.layers import shard_specs
from megamesh.parallel.shards import ShardSpec
from megamesh.parallel.tensor import SINGLE, TensorParallel


class Transformer(nn.Module):
    """Embedding, prelude, recursion, coda, head. Weights are drawn by `build.py`.

    `vocab_size` counts token ids. Embedding and head have `padded_vocab_size` rows, where that is given: padding is in no result, gradient
    or checkpoint.
    """

    def __init__(
        self,
        model: ModelConfig,
        recursion: RecursionConfig,
        vocab_size: int,
        recompute: Recompute | None = None,
        loss_chunk_tokens: int = 2048,
        *,
        padded_vocab_size: int | None = None,
        tp: TensorParallel = SINGLE,
    ):
        super().__init__()
        layout = recursion.layout or RecursionLayout(model.num_layers, 0, 0, 0, shared=True)
        num_rows = padded_vocab_size or vocab_size
        self.config, self.vocab_size, self.recompute, self.tp = model, vocab_size, recompute or Recompute(), tp
        self.num_loops, self.num_core, self.core_shared = layout.num_loops, layout.num_core, layout.shared
        self.embedding = TokenEmbedding(model, vocab_size, num_rows, tp)
        self.position_embedding = (
            nn.Embedding(model.max_position_embeddings, model.hidden_size) if model.pos_emb == "learned" else None
        )
        self.dropout = StateDropout(model.hidden_dropout, tp)
        self.prelude = nn.ModuleList(build_block(model, tp) for _ in range(layout.num_prelude))
        self.core = nn.ModuleList(build_block(model, tp) for _ in range(layout.num_core_weights))
        self.coda = nn.ModuleList(build_block(model, tp) for _ in range(layout.num_coda))
        recurring = recursion if layout.num_loops else RecursionConfig(recursion_scheme=PLAIN)
        self.routers = build_routers(recurring, model.hidden_size)
        self.scheme = build_scheme(recurring, self.routers)
        self.final_norm = build_norm(model)
        self.head = Head(model.hidden_size, vocab_size, num_rows, loss_chunk_tokens, tp)
        self.tie_head()

    def keep_only(self, holds: Callable[[str], bool]) -> None:
        """Let go of what `holds` denies: embedding, position_embedding, final_norm, head, routers, or a block such as core.3."""
        for name in ("embedding", "position_embedding", "final_norm", "head"):
            if not holds(name):
                setattr(self, name, None)
        for name in ("prelude", "core", "coda", "routers"):
            modules = getattr(self, name)
            for index in range(len(modules)):
                if not holds(name if name == "routers" else f"{name}.{index}"):
                    modules[index] = None

    def tie_head(self) -> None:
        """Let the head use the embedding's weight, unless they are separate. Moving a model off the meta device unties them."""
        if not self.config.no_weight_tying and self.head is not None:
            self.head.weight = self.embedding.weight

    def forward(self, tokens_BS: Tensor, labels_BS: Tensor, loss_mask_BS: Tensor) -> Tensor:
        """The training loss, a scalar in fp32: mean over all tokens of cross entropy × mask (0, 1, or a weight of mean 1)."""
        loss: Tensor = self.head(self.states(tokens_BS), labels_BS.flatten(), loss_mask_BS.flatten())
        return loss

    def logits(self, tokens_BS: Tensor) -> Tensor:
        """Logits [B, S, V] of every token, in the model's type."""
        return self.head.logits(self.states(tokens_BS)).unflatten(0, tokens_BS.shape)

    def last_logits(
        self, tokens_BS: Tensor, positions: Tensor, mask: Tensor | None, cache: KeyValueCache | None
    ) -> Tensor:
        """Logits [B, V] of the last token, in the model's type; see `states`. No gradient."""
        with torch.no_grad():
            h_TD = self.states(tokens_BS, positions, mask, cache)
            return self.head.logits(h_TD.unflatten(0, tokens_BS.shape)[:, -1])

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def states(
        self,
        tokens_BS: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Tokens [B, S] → this rank's final, normed states [T, D]. Positions default to 0 … S−1; see `attention_inputs`."""
        if positions is None:
            positions = torch.arange(tokens_BS.shape[1], device=tokens_BS.device)
        inputs = attention_inputs(self.config, len(tokens_BS), positions, mask, cache)
        h_emb_TD = self.embed(tokens_BS, positions)
        h_TD = self.recompute.run(self.prelude, h_emb_TD, inputs, first_layer=0)
        highway, layer = self.new_highway(), len(self.prelude)
        h_TD = self.scheme.enter(highway, h_emb_TD, h_TD)
        for t in range(self.num_loops):
            h_m_TD = self.recompute.run(self._core_of(t), h_TD, inputs, first_layer=layer)
            h_TD = self.scheme.advance(highway, t, h_m_TD)
            layer += self.num_core
        h_TD = self.recompute.run(self.coda, h_TD, inputs, first_layer=layer)
        out: Tensor = self.final_norm(h_TD)
        return out

    def embed(self, tokens_BS: Tensor, positions: Tensor) -> Tensor:
        """h_emb, this rank's [T, D], of tokens [B, S] at positions [S] or [B, S]."""
        h_TD = self.tp.reduce(self.embedding(tokens_BS.flatten()))
        if self.position_embedding is not None:
            positions_T = positions.expand_as(tokens_BS).flatten()
            h_TD = h_TD + self.position_embedding(self.tp.own_tokens(positions_T))
        out: Tensor = self.dropout(h_TD)
        return out

    def new_highway(self) -> Highway:
        """An empty highway for one micro-batch."""
        return Highway(self.tp)

    def shards(self) -> dict[str, ShardSpec]:
        """How this rank's parameters sit in the global ones, by name. Call it while the parameters are whole (ZeRO 3 empties them)."""
        partial = {name for name, _ in self.named_parameters() if self._sees_only_a_part(name)}
        return shard_specs(self, tp=self.tp, partial=partial)

    def _sees_only_a_part(self, name: str) -> bool:
        """Whether a replicated parameter meets only this rank's tokens (some routers; under sequence parallelism all) or heads."""
        meets_own_tokens = name.startswith("routers.") and self.scheme.divides_tokens
        return self.tp.sequence_parallel or meets_own_tokens or ".q_norm." in name or ".k_norm." in name

    def _core_of(self, t: int) -> nn.ModuleList:
        """The core's blocks in loop t: the same ones each time, or the loop's own where nothing is shared."""
        first = 0 if self.core_shared else t * self.num_core
        return self.core[first : first + self.num_core]
