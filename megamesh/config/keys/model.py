"""Keys of the transformer, apart from its recursion."""

from typing import Any, Literal

from pydantic import Field

from megamesh.config.keys.section import Section

Norm = Literal["layernorm", "rmsnorm"]
PositionEmbedding = Literal["learned", "rotary", "none"]
Activation = Literal["gelu", "geglu", "relu", "silu", "swiglu"]
GATED_ACTIVATIONS = frozenset({"geglu", "swiglu"})
InitMethod = Literal["normal", "scaled_normal", "small_init", "wang_init"]


class ModelConfig(Section):
    """The transformer, apart from its recursion. `num_layers` is the compute depth: a core of 8 layers run twice counts 16."""

    num_layers: int = Field(ge=1, description="Compute depth: prelude + core × loops + coda.")
    hidden_size: int = Field(ge=1, description="Width D of the states between blocks.")
    num_attention_heads: int = Field(ge=1, description="Query heads H.")
    max_position_embeddings: int = Field(
        ge=1,
        description="Positions that the model takes, in tokens, with any position embedding: no training sample, window of evaluation or "
        "generated text is longer. With learned positions, rows of their embedding. An export says it as max_position_embeddings and as "
        "its tokenizer's model_max_length.",
    )
    seq_length: int | None = Field(
        None,
        ge=1,
        description="Training sequence length S in tokens, at most max_position_embeddings, which is the default. The trained "
        "length: evaluation reads so many tokens at once unless told otherwise, generation beyond it says so, and an export keeps it as "
        "trained_sequence_length.",
    )
    num_kv_heads: int | None = Field(
        None, ge=1, description="Key/value heads (grouped-query attention). Default: num_attention_heads."
    )
    intermediate_size: int | None = Field(
        None,
        ge=1,
        description="The MLP's true width. Default: 4·hidden_size (8/3·hidden_size for a gated activation), rounded up to mlp_multiple_of.",
    )
    mlp_multiple_of: int = Field(
        1, ge=1, description="Rounds the default width of the MLP up. Not together with intermediate_size."
    )
    norm: Norm = Field("layernorm", description="Normalisation before attention, before the MLP and before the head.")
    layernorm_epsilon: float = Field(1e-5, gt=0, description="Epsilon of layernorm.")
    rms_norm_epsilon: float = Field(1e-8, gt=0, description="Epsilon of rmsnorm.")
    pos_emb: PositionEmbedding = Field("learned", description="Position embedding.")
    rotary_pct: float = Field(
        1.0, gt=0, le=1, description="Share of each head's dimensions that rotary embedding turns."
    )
    rotary_emb_base: float = Field(10000, gt=0, description="Base of the rotary frequencies (theta).")
    no_weight_tying: bool = Field(
        False, description="True: the head has a weight of its own. False: it shares the embedding's."
    )
    attention_config: list[Any] | None = Field(
        None,
        description='NeoX\'s [[["flash"|"global"], n | "all"]]. Both run torch\'s scaled_dot_product_attention, which picks the kernel.',
    )
    activation: Activation = Field("gelu", description="MLP activation; geglu and swiglu are gated.")
    gpt_j_residual: bool = Field(
        False, description="Attention and MLP read the same state and are added together (parallel residual)."
    )
    gpt_j_tied: bool = Field(False, description="With gpt_j_residual: attention and MLP share one norm.")
    use_bias_in_norms: bool = Field(True, description="Bias in layernorm (rmsnorm has none).")
    use_bias_in_attn_linear: bool = Field(True, description="Bias in the attention's linears.")
    use_bias_in_mlp: bool = Field(True, description="Bias in the MLP's linears.")
    use_qk_layernorm: bool = Field(
        False, description="Normalise queries and keys per head before the rotary embedding."
    )
    attention_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on attention weights.")
    hidden_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on what attention and MLP add to the state.")
    init_method: InitMethod = Field("normal", description="Distribution of the weights that read a state.")
    output_layer_init_method: InitMethod = Field(
        "scaled_normal",
        description="Distribution of the weights that write to the state; scaled_normal divides the std by √(2·num_layers).",
    )
    init_method_std: float = Field(
        0.02, gt=0, description="Standard deviation of init_method normal and of scaled_normal before scaling."
    )
    scale_embeddings: bool = Field(
        False, description="Multiply token embeddings by √hidden_size (MeSH, appendix B). Pythia does not."
    )
    vocab_size: int | None = Field(
        None, ge=1, description="Token ids of the tokenizer, before padding. Default: asked of the tokenizer."
    )
    make_vocab_size_divisible_by: int = Field(
        128,
        ge=1,
        description="The vocabulary is padded to a multiple of this times model_parallel_size. Rows of padding are zero, masked out of "
        "the softmax, never trained and in no checkpoint, so that no result depends on it.",
    )

    @property
    def sequence_length(self) -> int:
        return self.seq_length or self.max_position_embeddings

    @property
    def longest_sequence(self) -> int:
        """Positions that the model takes: max_position_embeddings, but no less than an old run has trained on."""
        return max(self.max_position_embeddings, self.sequence_length)

    @property
    def kv_heads(self) -> int:
        return self.num_kv_heads or self.num_attention_heads

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def rotary_dim(self) -> int:
        """Dimensions of each head that are rotated: always even (0 without rotary embedding)."""
        return int(self.head_dim * self.rotary_pct) // 2 * 2 if self.pos_emb == "rotary" else 0

    @property
    def gated(self) -> bool:
        return self.activation in GATED_ACTIVATIONS

    @property
    def mlp_width(self) -> int:
        """True width of the MLP: rows of one up-projection, columns of the down-projection."""
        if self.intermediate_size is not None:
            return self.intermediate_size
        width = 8 * self.hidden_size // 3 if self.gated else 4 * self.hidden_size
        return -(-width // self.mlp_multiple_of) * self.mlp_multiple_of

    @property
    def norm_epsilon(self) -> float:
        return self.layernorm_epsilon if self.norm == "layernorm" else self.rms_norm_epsilon

    def padded_vocab_size(self, vocab_size: int, model_parallel_size: int = 1) -> int:
        """The vocabulary rounded up so that it divides over the tensor-parallel ranks."""
        multiple = self.make_vocab_size_divisible_by * model_parallel_size
        return -(-vocab_size // multiple) * multiple
