"""An exported MegaMesh model in transformers. This file travels with the export and needs only torch and transformers.

    tokens ─▶ h_emb ─▶ prelude ─▶ h(0) ─▶ core ─▶ h_m(t) ─▶ h(t+1) … h(K) ─▶ coda ─▶ final norm ─▶ head
                                   ▲   the core runs K times   │
                                   └───────── recursion ◀──────┘

A block of a shared core runs once per loop, so keys and values are cached by *compute layer*, 0 … num_hidden_layers − 1: before
each call an attention module's `layer_idx` is set to the compute layer that it stands for.

Letters: B batch, S sequence, D hidden size, H query heads, G key/value heads, d head dimension, R rotated dimensions, N slots.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils import can_return_tuple

from .configuration_megamesh import MegaMeshConfig

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}


def build_norm(config: MegaMeshConfig, width: int) -> nn.Module:
    if config.norm == "layernorm":
        return nn.LayerNorm(width, eps=config.norm_eps, bias=config.norm_bias)
    return nn.RMSNorm(width, eps=config.norm_eps)


def rotary_angles(positions_BS: Tensor, rotary_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin, each [B, 1, S, R] in fp32."""
    exponent = torch.arange(0, rotary_dim, 2, dtype=torch.float32, device=positions_BS.device) / rotary_dim
    angles = positions_BS[:, None, :, None].float() * (1.0 / theta**exponent)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def apply_rotary(x_BHSd: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the first R dimensions of every head, by halves."""
    turned, rest = x_BHSd[..., : cos.shape[-1]], x_BHSd[..., cos.shape[-1] :]
    first, second = turned.chunk(2, dim=-1)
    turned = (turned * cos + torch.cat((-second, first), dim=-1) * sin).to(x_BHSd.dtype)
    return torch.cat((turned, rest), dim=-1)


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attention spelled out; also gives the attention weights [B, H, S, S_keys]."""
    groups = module.num_key_value_groups
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1, dtype=torch.promote_types(query.dtype, torch.float32)).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class MegaMeshAttention(nn.Module):
    """Causal self-attention with grouped key/value heads."""

    def __init__(self, config: MegaMeshConfig):
        super().__init__()
        self.config = config
        self.head_dim, self.scaling, self.is_causal = config.head_dim, config.head_dim**-0.5, True
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.layer_idx = 0  # set before every call
        query_width, key_width = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_width, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, key_width, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, key_width, bias=config.attention_bias)
        self.o_proj = nn.Linear(query_width, config.hidden_size, bias=config.attention_bias)
        self.q_norm = build_norm(config, self.head_dim) if config.qk_norm else nn.Identity()
        self.k_norm = build_norm(config, self.head_dim) if config.qk_norm else nn.Identity()

    def forward(
        self,
        h_BSD: Tensor,
        attention_mask: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        shape = (*h_BSD.shape[:-1], -1, self.head_dim)
        q_BHSd = self.q_norm(self.q_proj(h_BSD).view(shape).transpose(1, 2))
        k_BGSd = self.k_norm(self.k_proj(h_BSD).view(shape).transpose(1, 2))
        v_BGSd = self.v_proj(h_BSD).view(shape).transpose(1, 2)
        if position_embeddings is not None:
            q_BHSd, k_BGSd = apply_rotary(q_BHSd, *position_embeddings), apply_rotary(k_BGSd, *position_embeddings)
        if past_key_values is not None:
            k_BGSd, v_BGSd = past_key_values.update(k_BGSd, v_BGSd, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.config.attention_dropout if self.training else 0.0
        a_BSHd, weights = attend(
            self, q_BHSd, k_BGSd, v_BGSd, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        return self.o_proj(a_BSHd.reshape(*h_BSD.shape[:-1], -1).contiguous()), weights


class MegaMeshMLP(nn.Module):
    """down(act(up(h))), or gated: down(act(gate(h)) · up(h))."""

    def __init__(self, config: MegaMeshConfig):
        super().__init__()
        self.activation, self.gated = ACTIVATIONS[config.hidden_act], config.gated_mlp
        if self.gated:
            self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, h_BSD: Tensor) -> Tensor:
        up = self.up_proj(h_BSD)
        inner = self.activation(self.gate_proj(h_BSD)) * up if self.gated else self.activation(up)
        out: Tensor = self.down_proj(inner)
        return out


class MegaMeshBlock(GradientCheckpointingLayer):
    """One transformer block; `layer_idx` is the compute layer that this call stands for."""

    def __init__(self, config: MegaMeshConfig):
        super().__init__()
        self.residual, self.dropout = config.residual, config.hidden_dropout
        self.attention_norm = build_norm(config, config.hidden_size)
        if config.residual != "parallel_tied":
            self.mlp_norm = build_norm(config, config.hidden_size)
        self.self_attn, self.mlp = MegaMeshAttention(config), MegaMeshMLP(config)

    def forward(self, h_BSD: Tensor, layer_idx: int, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        self.self_attn.layer_idx = layer_idx
        normed_BSD = self.attention_norm(h_BSD)
        attended_BSD, weights = self.self_attn(normed_BSD, **kwargs)
        if self.residual == "sequential":
            h_BSD = h_BSD + self._drop(attended_BSD)
            return h_BSD + self._drop(self.mlp(self.mlp_norm(h_BSD))), weights
        mlp_input_BSD = normed_BSD if self.residual == "parallel_tied" else self.mlp_norm(h_BSD)
        return h_BSD + self._drop(attended_BSD + self.mlp(mlp_input_BSD)), weights

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class MegaMeshRouterLinear(nn.Linear):
    """A linear whose result is fp32 whatever the model's precision, also under autocast."""

    def forward(self, h_BSD: Tensor) -> Tensor:
        wide = torch.promote_types(h_BSD.dtype, torch.float32)
        with torch.autocast(device_type=h_BSD.device.type, enabled=False):
            return F.linear(h_BSD.to(wide), self.weight.to(wide), self.bias.to(wide))


class MegaMeshRouter(nn.Module):
    """One router set: where a state is written to, and what is read next (MeSH eq. 3)."""

    def __init__(self, config: MegaMeshConfig, step: int):
        super().__init__()
        self.step = step
        self.write = MegaMeshRouterLinear(config.hidden_size, config.mesh_num_slots)
        self.read = MegaMeshRouterLinear(config.hidden_size, config.mesh_num_slots)

    def forward(self, h_BSD: Tensor) -> tuple[Tensor, Tensor]:
        return self.write(h_BSD).softmax(-1), self.read(h_BSD).softmax(-1)


class MegaMeshStaticMixer(nn.Module):
    """Learned scalars a1, a2, a3, the same for every token."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(3))

    def forward(self, h_BSD: Tensor) -> Tensor:
        return self.weight.to(torch.promote_types(h_BSD.dtype, torch.float32))


class SumRecursion:
    """h(t+1) = f_core(h(t)) + the sum of any of h(t) (residual), h(0) (anchor), h_emb (anchor*); base adds none (eq. 1)."""

    def __init__(self, config: MegaMeshConfig, routers: nn.ModuleList, h_emb_BSD: Tensor, h_pre_BSD: Tensor):
        self.terms = {term: h_emb_BSD if term == "anchor*" else h_pre_BSD for term in config.scheme_terms}
        self.h_0_BSD = h_pre_BSD

    def enter(self) -> Tensor:
        return self.h_0_BSD

    def advance(self, t: int, h_m_BSD: Tensor) -> Tensor:
        for state_BSD in self.terms.values():
            h_m_BSD = h_m_BSD + state_BSD
        if "residual" in self.terms:
            self.terms["residual"] = h_m_BSD
        return h_m_BSD


class MixRecursion:
    """h(t+1) = a1·f_core(h(t)) + a2·h(0) + a3·h_emb, the scalars from mixer t (`static`, `dynamic`)."""

    def __init__(self, config: MegaMeshConfig, routers: nn.ModuleList, h_emb_BSD: Tensor, h_pre_BSD: Tensor):
        self.mixers, self.h_emb_BSD, self.h_0_BSD, self.h_BSD = routers, h_emb_BSD, h_pre_BSD, h_pre_BSD

    def enter(self) -> Tensor:
        return self.h_0_BSD

    def advance(self, t: int, h_m_BSD: Tensor) -> Tensor:
        a = self.mixers[t](self.h_BSD)
        mixed_BSD = a[..., 0:1] * h_m_BSD + a[..., 1:2] * self.h_0_BSD + a[..., 2:3] * self.h_emb_BSD
        self.h_BSD = mixed_BSD.to(h_m_BSD.dtype)
        return self.h_BSD


class MeshRecursion:
    """Memory-as-State-Highways in the unrolled form: h = Σ_i ⟨w_read, u_i⟩ · s_i, summed in fp32 (eq. 6-7).

    Sources s_i: h_emb (alone in slot 0), the prelude's output, then one core output per loop; u_i: how s_i was written over the slots.
    """

    def __init__(self, config: MegaMeshConfig, routers: nn.ModuleList, h_emb_BSD: Tensor, h_pre_BSD: Tensor):
        self.routers, self.sources = routers, [h_emb_BSD, h_pre_BSD]
        self.writes: list[Tensor] = []
        self.h_BSD = h_emb_BSD if config.mesh_transition_input == "h_emb" else h_pre_BSD

    def enter(self) -> Tensor:
        return self._route(0)

    def advance(self, t: int, h_m_BSD: Tensor) -> Tensor:
        self.sources.append(h_m_BSD)
        return self._route(t + 1)

    def _route(self, step: int) -> Tensor:
        write_BSN, read_BSN = self.routers[step](self.h_BSD)
        self.writes.append(write_BSN)
        total_BSD = read_BSN[..., :1] * self.sources[0]
        for source_BSD, written_BSN in zip(self.sources[1:], self.writes, strict=True):
            total_BSD = total_BSD + (read_BSN * written_BSN).sum(-1, keepdim=True) * source_BSD
        self.h_BSD = total_BSD.to(self.sources[0].dtype)
        return self.h_BSD


RECURSIONS: dict[str, Any] = {"mesh": MeshRecursion, "static": MixRecursion, "dynamic": MixRecursion}


def build_routers(config: MegaMeshConfig) -> nn.ModuleList:
    """The learned modules of the scheme: for mesh one set per loop and one for the transition, for mixers one per loop."""
    if not config.num_loops:
        return nn.ModuleList()
    if config.recursion_scheme == "mesh":
        return nn.ModuleList(MegaMeshRouter(config, step) for step in range(config.num_loops + 1))
    if config.recursion_scheme == "static":
        return nn.ModuleList(MegaMeshStaticMixer() for _ in range(config.num_loops))
    if config.recursion_scheme == "dynamic":
        return nn.ModuleList(MegaMeshRouterLinear(config.hidden_size, 3) for _ in range(config.num_loops))
    return nn.ModuleList()


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
        """Weights of a model that is not loaded: routers as the config records it, mixers at (1, 0, 0), plain recursion."""
        super()._init_weights(module)
        if isinstance(module, MegaMeshRouter) and self.config.mesh_router_init != "normal":
            for linear in (module.write, module.read):
                bias_N = torch.zeros_like(linear.bias)
                if self.config.mesh_router_init == "slot":
                    bias_N[module.step + 1] = self.config.mesh_router_slot_bias
                init.zeros_(linear.weight)
                init.copy_(linear.bias, bias_N)
        mixed = module.weight if isinstance(module, MegaMeshStaticMixer) else None
        if isinstance(module, MegaMeshRouterLinear) and self.config.recursion_scheme == "dynamic":
            mixed = module.bias
        if mixed is not None:
            init.copy_(mixed, torch.tensor([1.0, 0.0, 0.0], dtype=mixed.dtype, device=mixed.device))


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
            recursion = RECURSIONS.get(config.recursion_scheme, SumRecursion)(config, self.routers, h_emb_BSD, h_BSD)
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
    """The model with its head over the (padded) vocabulary."""

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
