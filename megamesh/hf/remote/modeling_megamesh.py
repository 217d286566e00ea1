"""An exported MegaMesh model in transformers. The file and the three beside it travel with the export and need nothing of MegaMesh.

    tokens ─▶ h_emb ─▶ prelude ─▶ h(0) ─▶ core ─▶ h_m(t) ─▶ h(t+1) … h(K) ─▶ coda ─▶ final norm ─▶ head
                                   ▲   the core runs K times   │
                                   └───────── recursion ◀──────┘

Letters: B batch, S sequence, D hidden size.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import can_return_tuple

from .blocks_megamesh import MegaMeshBlock, build_norm, rotary_angles
from .configuration_megamesh import MegaMeshConfig
from .recursion_megamesh import build_recursion, build_routers


class MegaMeshPreTrainedModel(PreTrainedModel):
    config: MegaMeshConfig
    config_class = MegaMeshConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ("MegaMeshBlock",)
    _skip_keys_device_placement = ("past_key_values",)
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def _init_weights(self, module: nn.Module) -> None:
        """Weights of a model that is not loaded: what the recursion learns, as its modules say."""
        super()._init_weights(module)
        start_values = getattr(module, "start_values", dict)
        for name, values in start_values().items():
            init.copy_(getattr(module, name), values)


class MegaMeshModel(MegaMeshPreTrainedModel):
    """Embedding, prelude, recursion, coda and final norm."""

    def __init__(self, config: MegaMeshConfig):
        super().__init__(config)
        num_core = config.num_core_layers * (1 if config.share_core else config.num_loops)
        self.embed_in = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.position_embedding == "learned":
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.prelude = nn.ModuleList(MegaMeshBlock(config) for _ in range(config.num_prelude_layers))
        self.core = nn.ModuleList(MegaMeshBlock(config) for _ in range(num_core))
        self.coda = nn.ModuleList(MegaMeshBlock(config) for _ in range(config.num_coda_layers))
        self.routers = build_routers(config)
        self.final_norm = build_norm(config, config.hidden_size)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embed_in

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embed_in = value

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_in(input_ids)
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if use_cache and past_key_values is None and not (self.gradient_checkpointing and self.training):
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            position_ids = self._positions(inputs_embeds, attention_mask, past_key_values)
        shared = dict(kwargs, past_key_values=past_key_values, position_ids=position_ids, position_embeddings=None)
        shared["attention_mask"] = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        if self.config.position_embedding == "rotary":
            shared["position_embeddings"] = rotary_angles(position_ids, self.config.rotary_dim, self.config.rope_theta)
        trace = _Trace(
            self.config.output_hidden_states if output_hidden_states is None else output_hidden_states,
            self.config.output_attentions if output_attentions is None else output_attentions,
        )
        h_BSD = self._states(self._embed(inputs_embeds, position_ids), shared, trace)
        return BaseModelOutputWithPast(
            last_hidden_state=h_BSD,
            past_key_values=past_key_values if use_cache else None,
            hidden_states=(*trace.hidden_states, h_BSD) if trace.wants_states else None,
            attentions=tuple(trace.attentions) if trace.wants_attentions else None,
        )

    def _positions(self, inputs_embeds: Tensor, attention_mask: Tensor | None, cache: Cache | None) -> Tensor:
        """Positions [B, S] that count from each row's first real token where a mask [B, past + S] shows the padding."""
        length = inputs_embeds.shape[1]
        if isinstance(attention_mask, Tensor) and attention_mask.dim() == 2:
            return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]
        past = cache.get_seq_length() if cache is not None else 0
        return torch.arange(past, past + length, device=inputs_embeds.device)[None]

    def _embed(self, inputs_embeds: Tensor, position_ids: Tensor) -> Tensor:
        h_BSD = inputs_embeds * math.sqrt(self.config.hidden_size) if self.config.scale_embeddings else inputs_embeds
        if self.config.position_embedding == "learned":
            h_BSD = h_BSD + self.embed_positions(position_ids)
        return F.dropout(h_BSD, self.config.hidden_dropout, self.training)

    def _states(self, h_emb_BSD: Tensor, shared: dict[str, Any], trace: "_Trace") -> Tensor:
        """Embeddings → the final, normed states."""
        config = self.config
        h_BSD = self._run(self.prelude, h_emb_BSD, 0, shared, trace)
        if config.num_loops:
            recursion = build_recursion(config, self.routers, h_emb_BSD, h_BSD)
            h_BSD = recursion.enter()
            for t in range(config.num_loops):
                first = 0 if config.share_core else t * config.num_core_layers
                core = self.core[first : first + config.num_core_layers]
                h_m_BSD = self._run(core, h_BSD, config.num_prelude_layers + t * config.num_core_layers, shared, trace)
                h_BSD = recursion.advance(t, h_m_BSD)
        h_BSD = self._run(self.coda, h_BSD, config.num_hidden_layers - config.num_coda_layers, shared, trace)
        out: Tensor = self.final_norm(h_BSD)
        return out

    def _run(
        self, blocks: nn.ModuleList, h_BSD: Tensor, first_layer: int, shared: dict[str, Any], trace: "_Trace"
    ) -> Tensor:
        for offset, block in enumerate(blocks):
            trace.input_of_block(h_BSD)
            h_BSD, weights = block(h_BSD, first_layer + offset, **shared)
            trace.attention_of_block(weights)
        return h_BSD


class _Trace:
    """The states before each block call and the attention weights within, where the caller asked for them."""

    def __init__(self, wants_states: bool | None, wants_attentions: bool | None):
        self.wants_states, self.wants_attentions = bool(wants_states), bool(wants_attentions)
        self.hidden_states: list[Tensor] = []
        self.attentions: list[Tensor | None] = []

    def input_of_block(self, h_BSD: Tensor) -> None:
        if self.wants_states:
            self.hidden_states.append(h_BSD)

    def attention_of_block(self, weights: Tensor | None) -> None:
        if self.wants_attentions:
            self.attentions.append(weights)


class MegaMeshForCausalLM(MegaMeshPreTrainedModel, GenerationMixin):
    """The model with its head over the vocabulary."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_in.weight"}  # noqa: RUF012 - transformers copies it per model
    _tp_plan = {"lm_head": "colwise_gather_output"}  # noqa: RUF012

    def __init__(self, config: MegaMeshConfig):
        super().__init__(config)
        self.model = MegaMeshModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.lm_head = new_embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept, :])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


__all__ = ["MegaMeshForCausalLM", "MegaMeshModel", "MegaMeshPreTrainedModel"]
