"""Keys as other programs spell them, for the hint beside an unknown key: Hugging Face, Megatron, nanoGPT, torchrun scripts.

    learning_rate (a.yml:3) ──▶ write lr in the optimizer block, optimizer: {params: {lr: 0.0003}}
    --set learning_rate=3e-4 ─▶ write --set optimizer.params.lr=0.0003

Nothing here is accepted: another spelling may carry another meaning (a number of steps where ours is a share), so the user writes it.
"""

from typing import Any

from megamesh.config.yaml_files import COMMAND_LINE, yaml_text

_SAME = {
    "optimizer.params.lr": "learning_rate peak_lr max_lr peak_learning_rate max_learning_rate base_lr",
    "optimizer.params.eps": "eps adam_eps adam_epsilon epsilon optimizer_eps optimizer_epsilon",
    "optimizer.params.betas": "betas adam_betas optimizer_betas",
    "optimizer.type": "optim optimizer_name",
    "min_lr": "min_learning_rate lr_min learning_rate_min final_lr final_learning_rate",
    "weight_decay": "wd adam_weight_decay optimizer_weight_decay",
    "gradient_clipping": "max_grad_norm grad_clip gradient_clip gradient_clip_val clip_gradients clip_grad_norm max_norm",
    "lr_decay_style": "lr_scheduler_type lr_scheduler lr_schedule lr_schedule_type scheduler_type",
    "lr_decay_iters": "lr_decay_steps decay_steps num_decay_steps",
    "warmup": "warmup_ratio warmup_fraction lr_warmup_fraction warmup_pct",
    "train_batch_size": "global_batch_size total_batch_size effective_batch_size",
    "train_micro_batch_size_per_gpu": "micro_batch_size per_device_train_batch_size per_device_batch_size "
    "device_batch_size local_batch_size train_micro_batch_size",
    "gradient_accumulation_steps": "accumulate_grad_batches grad_accum_steps grad_accum accumulation_steps num_micro_batches",
    "train_iters": "max_steps max_iters train_steps training_steps num_train_steps total_steps num_steps max_train_steps num_iterations",
    "train_epochs": "num_train_epochs num_epochs max_epochs epochs",
    "eval_interval": "eval_steps evaluation_steps val_interval val_check_interval valid_interval",
    "eval_iters": "eval_batches limit_val_batches num_eval_batches",
    "seed": "random_seed rng_seed manual_seed",
    "num_workers": "dataloader_num_workers num_data_workers",
    "checkpoint_activations": "gradient_checkpointing recompute_activations recompute_granularity activation_checkpoint",
    "compile": "torch_compile use_compile use_torch_compile",
    "precision": "dtype torch_dtype mixed_precision params_dtype",
    "num_layers": "n_layer n_layers num_hidden_layers depth",
    "hidden_size": "n_embd d_model dim n_embed embed_dim embedding_dim model_dim hidden_dim",
    "num_attention_heads": "n_head n_heads num_heads",
    "num_kv_heads": "num_key_value_heads n_kv_heads n_kv_head num_query_groups",
    "intermediate_size": "ffn_hidden_size d_ff ffn_dim mlp_dim mlp_hidden_size",
    "seq_length": "seq_len max_seq_len max_seq_length sequence_length block_size context_length max_length model_max_length ctx_len",
    "max_position_embeddings": "n_positions n_ctx max_positions",
    "norm": "normalization norm_type",
    "layernorm_epsilon": "layer_norm_eps layer_norm_epsilon norm_epsilon norm_eps",
    "rms_norm_epsilon": "rms_norm_eps rmsnorm_eps rmsnorm_epsilon",
    "pos_emb": "position_embedding_type positional_embedding position_embedding",
    "rotary_pct": "partial_rotary_factor rotary_percent",
    "rotary_emb_base": "rope_theta rotary_base rope_base",
    "activation": "hidden_act activation_function act_fn",
    "init_method_std": "initializer_range init_std",
    "attention_dropout": "attn_pdrop attn_dropout",
    "hidden_dropout": "dropout resid_pdrop",
    "recursion": "num_loops loops num_recursions recurrence n_loops num_recurrences",
    "model_parallel_size": "tensor_model_parallel_size tensor_parallel_size tp_size tp",
    "pipe_parallel_size": "pipeline_model_parallel_size pipeline_parallel_size pp_size pp",
    "data_path": "dataset data data_prefix train_data_path dataset_path dataset_name train_file data_dir",
    "vocab_file": "tokenizer tokenizer_path tokenizer_file tokenizer_name tokenizer_model tokenizer_name_or_path",
    "save": "output_dir save_dir out_dir checkpoint_dir save_path ckpt_dir",
    "load": "resume resume_from_checkpoint load_dir resume_from ckpt_path pretrained_checkpoint model_name_or_path",
    "checkpoint_factor": "save_steps save_every checkpoint_interval save_freq",
    "keep_last_n_checkpoints": "save_total_limit max_checkpoints keep_last_n",
    "log_interval": "logging_steps log_every log_every_n_steps log_freq",
    "tensorboard_dir": "logging_dir tensorboard_log_dir",
}
MEANT = {spelling: key for key, spellings in _SAME.items() for spelling in spellings.split()}
"""Another program's spelling → the key, or the place in a block, that it means here."""

OTHER_VALUES = {
    "adam_beta1": "optimizer.params.betas, a pair such as [0.9, 0.95]",
    "adam_beta2": "optimizer.params.betas, a pair such as [0.9, 0.95]",
    "beta1": "optimizer.params.betas, a pair such as [0.9, 0.95]",
    "beta2": "optimizer.params.betas, a pair such as [0.9, 0.95]",
    "warmup_steps": "warmup, a share of lr_decay_iters such as 0.01",
    "warmup_iters": "warmup, a share of lr_decay_iters such as 0.01",
    "num_warmup_steps": "warmup, a share of lr_decay_iters such as 0.01",
    "lr_warmup_iters": "warmup, a share of lr_decay_iters such as 0.01",
    "lr_warmup_steps": "warmup, a share of lr_decay_iters such as 0.01",
    "tie_word_embeddings": "no_weight_tying, which says the opposite",
    "tie_embeddings": "no_weight_tying, which says the opposite",
    "untie_embeddings_and_output_weights": "no_weight_tying",
    "bias": "use_bias_in_norms, use_bias_in_attn_linear and use_bias_in_mlp",
    "max_tokens": "train_iters, a number of steps",
    "train_tokens": "train_iters, a number of steps",
    "train_samples": "train_iters, a number of steps",
}
"""Spellings whose value must be another here, and what to write."""

_PREFIX = "optimizer.params."
IN_PARAMS = {
    **{spelling: f"write {key.removeprefix(_PREFIX)}" for spelling, key in MEANT.items() if key.startswith(_PREFIX)},
    **dict.fromkeys(("beta1", "beta2", "adam_beta1", "adam_beta2"), "write betas: [0.9, 0.95]"),
}
"""Spellings inside optimizer.params, and the mend."""


def meant(key: str, value: Any, place: str) -> str | None:
    """What to write instead of another program's key, in the form of its place; None for a key that is not listed."""
    if key in OTHER_VALUES:
        return f"write {OTHER_VALUES[key]}"
    if key not in MEANT:
        return None
    target, shown = MEANT[key], yaml_text(value)
    if place == COMMAND_LINE:
        return f"write --set {target}={shown}" if _may_follow(target) else f"write {target}"
    block, *inner = target.split(".")
    if not inner:
        return f"write {target}"
    nested = shown
    for name in reversed(inner):
        nested = f"{{{name}: {nested}}}"
    return f"write {inner[-1]} in the {block} block, {block}: {nested}"


def _may_follow(target: str) -> bool:
    """Whether a value means the same at the target: not where ours is chosen from other words, or is a path."""
    return target.startswith(_PREFIX) or target in ("min_lr", "weight_decay", "gradient_clipping")
