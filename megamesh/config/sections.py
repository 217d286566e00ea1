"""The sections of a run's configuration: every key, its default and what it means.

    YAML files ──load.py──▶ flat {key: value} ──▶ one frozen section per subject ──checks.py──▶ RunConfig

A key belongs to exactly one section and is spelled as in GPT-NeoX where NeoX has it. Sections are frozen; what follows from
other values is a property. Code below `training/` receives the section that it needs, never the whole `RunConfig`.
"""

import os
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from megamesh.config.recursion import RecursionLayout, parse_recursion

Norm = Literal["layernorm", "rmsnorm"]
PositionEmbedding = Literal["learned", "rotary", "none"]
Activation = Literal["gelu", "geglu", "relu", "silu", "swiglu"]
GATED_ACTIVATIONS = frozenset({"geglu", "swiglu"})
InitMethod = Literal["normal", "scaled_normal", "small_init", "wang_init"]
RouterInit = Literal["normal", "zero", "slot"]
TransitionInput = Literal["h_emb", "prelude"]
NUM_SPLITS = 3


class Section(BaseModel):
    """A frozen group of keys; an unknown key or a value of the wrong type is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, protected_namespaces=(), allow_inf_nan=False)


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


class ModelConfig(Section):
    """The transformer, apart from its recursion. `num_layers` is the compute depth: a core of 8 layers run twice counts 16."""

    num_layers: int = Field(ge=1, description="Compute depth: prelude + core × loops + coda.")
    hidden_size: int = Field(ge=1, description="Width D of the states between blocks.")
    num_attention_heads: int = Field(ge=1, description="Query heads H.")
    max_position_embeddings: int = Field(
        ge=1, description="Longest sequence that the position embedding covers, in tokens."
    )
    seq_length: int | None = Field(
        None, ge=1, description="Training sequence length S in tokens. Default: max_position_embeddings."
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


class RecursionConfig(Section):
    """Which layers recur, and what carries state from loop to loop."""

    recursion: str | None = Field(
        None,
        description='Layer notation: "4+8R2+4" (shared core) or "4+8+8+4" (same boundaries, nothing shared). None: a plain stack.',
    )
    recursion_scheme: str = Field(
        "mesh",
        description="base, residual, anchor, anchor* (or a sum such as residual+anchor), static, dynamic, mesh. Needs recursion.",
    )
    mesh_num_slots: int | None = Field(None, ge=1, description="State-buffer slots N. Default: loops + 3.")
    mesh_transition_input: TransitionInput = Field(
        "h_emb", description="What the transitional routers read: the embeddings or the prelude's output."
    )
    mesh_router_init: RouterInit = Field(
        "normal",
        description="normal: weights as other linears, biases 0. zero: uniform routing. slot: biases give every state a slot of its own.",
    )
    mesh_router_slot_bias: float = Field(
        4.0, description="Bias β on slot t+1 of router set t with mesh_router_init slot."
    )

    @property
    def layout(self) -> RecursionLayout | None:
        return parse_recursion(self.recursion) if self.recursion else None

    @property
    def num_slots(self) -> int:
        """Slots N of the state buffer (MeSH's B)."""
        layout = self.layout
        assert layout is not None, "a model without recursion has no slots"
        return self.mesh_num_slots or layout.num_loops + 3


class BatchConfig(Section):
    """Any two of the three (or one, with defaults of 1) give the third; batch.py does the arithmetic."""

    train_batch_size: int | None = Field(None, ge=1, description="Samples per optimizer step over all processes.")
    train_micro_batch_size_per_gpu: int | None = Field(
        None, ge=1, description="Samples per forward pass of one data-parallel rank."
    )
    gradient_accumulation_steps: int | None = Field(None, ge=1, description="Forward passes per optimizer step.")


class OptimizerConfig(Section):
    """Optimizer, schedule and ZeRO."""

    optimizer: dict[str, Any] = Field(
        default_factory=lambda: {"type": "AdamW", "params": {"lr": 1e-3, "betas": [0.9, 0.95], "eps": 1e-8}},
        description="{type, params}: Adam or AdamW (both decouple the decay); params lr (the peak), betas, eps.",
    )
    zero_optimization: dict[str, Any] = Field(
        default_factory=lambda: {"stage": 0}, description="DeepSpeed's ZeRO block; stage 0, 1, 2 or 3."
    )
    gradient_clipping: float = Field(
        1.0, ge=0, description="Largest norm of the gradient over all parameters; 0 turns clipping off."
    )
    weight_decay: float = Field(0.1, ge=0, description="Decoupled weight decay of the matrices.")
    weight_decay_all: bool = Field(False, description="Decay norms, biases and embeddings too.")
    min_lr: float = Field(0.0, ge=0, description="Learning rate at and after lr_decay_iters.")
    lr_decay_style: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="Shape of the decay after warm-up."
    )
    lr_decay_iters: int | None = Field(
        None, ge=1, description="Steps over which the rate decays. Default: train_iters."
    )
    warmup: float = Field(0.01, ge=0, le=1, description="Warm-up as a fraction of lr_decay_iters.")
    override_lr_scheduler: bool = Field(
        False,
        description="On resume, take the schedule from this configuration although it differs from the checkpoint's.",
    )

    @property
    def zero_stage(self) -> int:
        return int(self.zero_optimization.get("stage", 0))

    @property
    def peak_lr(self) -> float:
        """Learning rate at the end of warm-up."""
        return float(self._params["lr"])

    @property
    def betas(self) -> tuple[float, float]:
        """Adam's decay rates of the two moments; torch's defaults where the block leaves them out."""
        first, second = self._params.get("betas", (0.9, 0.999))
        return float(first), float(second)

    @property
    def eps(self) -> float:
        return float(self._params.get("eps", 1e-8))

    @property
    def _params(self) -> dict[str, Any]:
        params: dict[str, Any] = self.optimizer["params"]
        return params


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


class TrainingConfig(Section):
    """Length of the run, evaluation, seed and recomputation."""

    train_iters: int | None = Field(None, ge=1, description="Optimizer steps. Give this or train_epochs.")
    train_epochs: int | None = Field(
        None, ge=1, description="Passes over the training data, over each path of a blend. Give this or train_iters."
    )
    eval_interval: int = Field(1000, ge=1, description="Steps between evaluations.")
    eval_iters: int = Field(100, ge=0, description="Global batches per evaluation; 0 turns evaluation off.")
    seed: int = Field(1234, ge=0, lt=2**32, description="Seed of weights, sample order and dropout.")
    checkpoint_activations: bool = Field(
        False, description="Recompute activations in backward instead of keeping them."
    )
    checkpoint_activations_per: Literal["block", "loop"] = Field(
        "block", description="What is recomputed as one piece: a block, or a whole pass through the core."
    )
    checkpoint_num_layers: int = Field(
        1, ge=1, description="Blocks that are recomputed as one piece with checkpoint_activations_per block."
    )
    loss_chunk_tokens: int = Field(
        2048, ge=1, description="Tokens whose logits exist at once while the loss is computed."
    )
    compile: bool = Field(False, description="Run every block through torch.compile.")
    max_nonfinite_steps: int = Field(
        10, ge=1, description="Skipped (non-finite) steps in a row after which the run stops."
    )


class DataConfig(Section):
    """Indexed files and how samples are drawn from them."""

    data_path: str | None = Field(None, description="Prefix of one .bin/.idx pair; `split` divides its documents.")
    train_data_paths: list[str] | None = Field(
        None, description="Prefixes of the training data, blended by train_data_weights."
    )
    valid_data_paths: list[str] | None = Field(None, description="Prefixes of the validation data.")
    test_data_paths: list[str] | None = Field(None, description="Prefixes of the test data.")
    train_label_data_paths: list[str] | None = Field(
        None,
        description="Labels of the training data: as many prefixes, each with the sequences and lengths of its data. A negative label "
        "(-100) is not counted in the loss; labels are shifted here, as the tokens are.",
    )
    valid_label_data_paths: list[str] | None = Field(None, description="Labels of the validation data.")
    test_label_data_paths: list[str] | None = Field(None, description="Labels of the test data.")
    train_data_weights: list[float] | None = Field(None, description="One weight per training prefix. Default: equal.")
    valid_data_weights: list[float] | None = Field(
        None, description="One weight per validation prefix. Default: equal."
    )
    test_data_weights: list[float] | None = Field(None, description="One weight per test prefix. Default: equal.")
    weight_by_num_tokens: bool = Field(
        False,
        description="Weights of all *_data_paths from their numbers of tokens t: t^weighted_sampler_alpha.",
    )
    weight_by_num_documents: bool = Field(
        False,
        description="Weights of all *_data_paths from their shares p of the documents: p^weighted_sampler_alpha · (1 − p), as in GPT-NeoX.",
    )
    weighted_sampler_alpha: float = Field(
        1.0,
        ge=0,
        description="Exponent of weight_by_num_tokens and weight_by_num_documents; below 1 favours small datasets.",
    )
    weighted_document_limit: int | None = Field(
        None, ge=1, description="With weight_by_num_documents: a dataset counts at most so many documents."
    )
    valid_per_dataset: bool = Field(
        False,
        description="Besides the blend's, measure the loss of each of valid_data_paths on eval_iters batches of its own.",
    )
    split: str = Field("969,30,1", description="Shares of data_path's documents for training, validation and test.")
    pack_impl: Literal["packed", "pack_until_overflow", "unpacked"] = Field(
        "packed",
        description="How documents fill samples: packed lays them end to end and cuts; pack_until_overflow takes whole documents until the "
        "next does not fit; unpacked takes one. The last two pad, which the loss does not count.",
    )
    allow_chopped: bool = Field(
        True,
        description="pack_until_overflow, unpacked: cut off documents longer than a sample. False: leave them out. No effect with packed.",
    )
    data_cache_path: str | None = Field(
        None, description="Folder for the index caches. Default: beside each data file."
    )
    num_workers: int = Field(
        2, ge=0, description="Loader processes per rank that read ahead; 0 reads in the training process."
    )

    @property
    def split_shares(self) -> tuple[float, float, float]:
        """`split` as shares of train, valid and test that sum to 1; ValueError where it is not up to three shares."""
        try:
            shares = [float(share) for share in self.split.replace("/", ",").split(",")]
        except ValueError:
            raise ValueError("is not a list of numbers") from None
        if len(shares) > NUM_SPLITS:
            raise ValueError(f"has {len(shares)} shares")
        if min(shares) < 0 or not 0 < sum(shares) < float("inf"):
            raise ValueError("needs shares of at least 0, one of them above 0")
        shares += [0.0] * (NUM_SPLITS - len(shares))
        total = sum(shares)
        return shares[0] / total, shares[1] / total, shares[2] / total


class TokenizerConfig(Section):
    """Text to token ids."""

    tokenizer_type: Literal[
        "HFTokenizer", "GPT2BPETokenizer", "SPMTokenizer", "CharLevelTokenizer", "TiktokenTokenizer"
    ] = Field("GPT2BPETokenizer", description="Kind of tokenizer.")
    vocab_file: str | None = Field(
        None,
        description="tokenizer.json, sentencepiece model, vocab.json, vocabulary of characters, .tiktoken file or name of a tiktoken "
        "encoding.",
    )
    merge_file: str | None = Field(None, description="merges.txt of GPT2BPETokenizer.")


class CheckpointConfig(Section):
    """When checkpoints are written, where, and what is read back."""

    save: str | None = Field(None, description="Folder that checkpoints are written to.")
    load: str | None = Field(
        None,
        description="Run (its `latest`) or checkpoint to continue from. Default: save, so that the same command continues.",
    )
    checkpoint_factor: int | None = Field(
        None, ge=1, description="Steps between checkpoints (linear) or the growth factor of that distance (log)."
    )
    checkpoint_scale: Literal["linear", "log"] = Field(
        "linear", description="linear: every checkpoint_factor steps. log: at steps 1, factor, factor² …."
    )
    extra_save_iters: list[int] = Field(default_factory=list, description="Further steps at which to save.")
    keep_last_n_checkpoints: int | None = Field(
        None, ge=1, description="Delete all but the newest n. Default: keep all."
    )
    async_save: bool = Field(
        False,
        description="Write checkpoints while training goes on: it stops for a copy to host memory (12 bytes per parameter of a process).",
    )
    verify_checkpoint: bool = Field(
        True, description="Compare all that is loaded with the checksums of its checkpoint."
    )
    finetune: bool = Field(False, description="Read only the weights, and start at step 0.")
    no_load_optim: bool = Field(False, description="Do not read the optimizer's moments.")
    no_load_rng: bool = Field(
        False,
        description="Draw dropout from this run's seed. Default: from the seed of the checkpoint, also where seed is another now.",
    )

    @property
    def loads_itself(self) -> bool:
        """Whether `load` is the run's own folder, however it is spelled."""
        return None not in (self.load, self.save) and os.path.abspath(str(self.load)) == os.path.abspath(str(self.save))


class LogConfig(Section):
    """What is shown while training."""

    log_interval: int = Field(100, ge=1, description="Steps between lines on the console and points in TensorBoard.")
    tensorboard_dir: str | None = Field(None, description="Folder for TensorBoard event files. None: no TensorBoard.")
    peak_tflops: float | None = Field(
        None,
        gt=0,
        description="Dense peak of one device in TFLOP/s, for MFU. Default: known for common GPUs; else no MFU.",
    )


class RunConfig(Section):
    """One run: everything that the YAML files said, validated."""

    parallel: ParallelConfig
    model: ModelConfig
    recursion: RecursionConfig
    batch: BatchConfig
    optimizer: OptimizerConfig
    precision: PrecisionConfig
    training: TrainingConfig
    data: DataConfig
    tokenizer: TokenizerConfig
    checkpoint: CheckpointConfig
    log: LogConfig


SECTIONS: dict[str, type[Section]] = {
    name: field.annotation for name, field in RunConfig.model_fields.items() if isinstance(field.annotation, type)
}
