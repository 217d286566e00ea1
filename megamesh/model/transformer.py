"""A decoder-only transformer whose middle may recur.

    tokens ──embedding──▶ h_emb ──prelude──▶ h_pre ──enter──▶ h(0) ─┐
                                            ┌───────────────────────┘
                                            └▶ core ──▶ h_m(t) ──advance──▶ h(t+1)   K times, the core's weights shared or not
    h(K) ──coda──▶ final norm ──head──▶ loss or logits

A plain stack is the same with all its blocks in the prelude and no loop. Parameter names do not depend on how the model is
laid out over processes; checkpoints are keyed by them.

Letters: B batch, S sequence, D hidden size, V padded vocabulary, K loops.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megamesh.config.recursion import RecursionLayout
from megamesh.config.sections import ModelConfig, RecursionConfig
from megamesh.model.attention import KeyValueCache, attention_inputs
from megamesh.model.block import build_block
from megamesh.model.embedding import TokenEmbedding
from megamesh.model.head import Head
from megamesh.model.norms import build_norm
from megamesh.model.recompute import Recompute
from megamesh.model.recursion.highway import Highway
from megamesh.model.recursion.schemes import SumScheme, build_routers, build_scheme


class Transformer(nn.Module):
    """Embedding, prelude, recursion, coda, head. `vocab_size` is the padded one; weights are drawn by `build.py`."""

    def __init__(
        self,
        model: ModelConfig,
        recursion: RecursionConfig,
        vocab_size: int,
        recompute: Recompute | None = None,
        loss_chunk_tokens: int = 2048,
    ):
        super().__init__()
        layout = recursion.layout or RecursionLayout(model.num_layers, 0, 0, 0, shared=True)
        self.config, self.recompute = model, recompute or Recompute()
        self.num_loops, self.num_core, self.core_shared = layout.num_loops, layout.num_core, layout.shared
        self.embedding = TokenEmbedding(model, vocab_size)
        self.position_embedding = (
            nn.Embedding(model.max_position_embeddings, model.hidden_size) if model.pos_emb == "learned" else None
        )
        self.prelude = nn.ModuleList(build_block(model) for _ in range(layout.num_prelude))
        self.core = nn.ModuleList(build_block(model) for _ in range(layout.num_core_weights))
        self.coda = nn.ModuleList(build_block(model) for _ in range(layout.num_coda))
        self.routers = build_routers(recursion, layout, model.hidden_size) if layout.num_loops else nn.ModuleList()
        self.scheme = build_scheme(recursion, self.routers) if layout.num_loops else SumScheme(("base",))
        self.final_norm = build_norm(model)
        self.head = Head(model.hidden_size, vocab_size, loss_chunk_tokens)
        self.tie_head()

    def tie_head(self) -> None:
        """Let the head use the embedding's weight, unless they are separate. Moving a model off the meta device unties them."""
        if not self.config.no_weight_tying:
            self.head.weight = self.embedding.weight

    def forward(self, tokens_BS: Tensor, labels_BS: Tensor, loss_mask_BS: Tensor) -> Tensor:
        """The training loss: mean cross entropy of the tokens that the mask counts, a scalar in fp32."""
        loss: Tensor = self.head(self.states(tokens_BS), labels_BS, loss_mask_BS)
        return loss

    def logits(self, tokens_BS: Tensor) -> Tensor:
        """Logits [B, S, V] of every token, in the model's type."""
        return self.head.logits(self.states(tokens_BS))

    def states(
        self,
        tokens_BS: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Tokens [B, S] → the final, normed states [B, S, D]. Positions default to 0 … S−1; see `attention_inputs`."""
        if positions is None:
            positions = torch.arange(tokens_BS.shape[1], device=tokens_BS.device)
        inputs = attention_inputs(self.config, positions, mask, cache)
        h_emb_BSD = self._embed(tokens_BS, positions)
        h_BSD = self.recompute.run(self.prelude, h_emb_BSD, inputs, first_layer=0)
        highway, layer = Highway(), len(self.prelude)
        h_BSD = self.scheme.enter(highway, h_emb_BSD, h_BSD)
        for t in range(self.num_loops):
            h_m_BSD = self.recompute.run(self._core_of(t), h_BSD, inputs, first_layer=layer)
            h_BSD = self.scheme.advance(highway, t, h_m_BSD)
            layer += self.num_core
        h_BSD = self.recompute.run(self.coda, h_BSD, inputs, first_layer=layer)
        out: Tensor = self.final_norm(h_BSD)
        return out

    def _embed(self, tokens_BS: Tensor, positions: Tensor) -> Tensor:
        h_BSD: Tensor = self.embedding(tokens_BS)
        if self.position_embedding is not None:
            h_BSD = h_BSD + self.position_embedding(positions)
        return F.dropout(h_BSD, self.config.hidden_dropout, self.training)

    def _core_of(self, t: int) -> nn.ModuleList:
        """The core's blocks in loop t: the same ones each time, or the loop's own where nothing is shared."""
        first = 0 if self.core_shared else t * self.num_core
        return self.core[first : first + self.num_core]
