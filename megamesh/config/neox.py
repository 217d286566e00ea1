"""GPT-NeoX keys that are not keys of ours: which are accepted, which become a key of ours, which are refused and why.

    every NeoX key ─┬─ RENAMED   another spelling of a key of ours
                    ├─ IGNORED   without meaning here, whatever its value: accepted, named in one notice
                    ├─ REFUSED   accepted at the values that change nothing, refused with a reason at any other
                    └─ fp16, bf16   blocks that choose the precision (precision_blocks.py)

The contract: a NeoX file either means here what it means there, or is refused with the mend; nothing is dropped silently.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

RENAMED = {
    "gas": "gradient_accumulation_steps",
    "save_interval": "checkpoint_factor",
    "clip_grad": "gradient_clipping",
    "min_scale": "min_loss_scale",
}

IGNORED_BY_REASON: dict[str, str] = {
    "PyTorch picks the kernels": """
        scaled_upper_triang_masked_softmax_fusion scaled_masked_softmax_fusion bias_gelu_fusion bias_dropout_fusion
        bias_swiglu_fusion rope_fusion layernorm_fusion rmsnorm_fusion use_flashattn_swiglu attention_softmax_in_fp32
        apply_query_key_layer_scaling te_columnparallel_overlap onnx_safe""",
    "has no counterpart in MegaMesh's engine": """
        synchronize_each_layer deepspeed_activation_checkpointing contiguous_checkpointing profile_backward
        partition_activations use_cpu_initialization lazy_mpu_init output_layer_parallelism
        is_pipe_parallel distributed_backend deepspeed deepscale deepscale_config dump_state fp32_allreduce world_size
        local_rank rank global_num_gpus iteration do_train do_valid do_test save_iters config_files git_hash user_script
        checkpoint_validation_with_forward_pass no_save_rng use_shared_fs sparse_attention sparsity_config""",
    "data files are always memory-mapped .bin/.idx pairs": "data_impl mmap_warmup short_seq_prob",
    "the schedule is a function of the step": "use_checkpoint_lr_scheduler",
    "log_interval decides what is printed": """
        steps_per_print wall_clock_breakdown log_dir log_grad_norm flops_profiler gradient_noise_scale_n_batches
        gradient_noise_scale_cpu_offload profile_step_start profile_step_stop""",
    "loss_scale decides it": "dynamic_loss_scale",
    "belongs on the launcher's command line": """
        hostfile include exclude num_nodes num_gpus master_port master_addr launcher force_multi detect_nvlink_pairs
        no_ssh_check ssh_port comment account deepspeed_mpi deepspeed_slurm deepspeed_extra_args""",
    "belongs to Weights & Biases": "wandb_group wandb_team wandb_project wandb_host wandb_run_name wandb_init_all_ranks",
    "belongs to text generation or evaluation": """
        text_gen_type temperature top_p top_k return_logits maximum_tokens prompt_end sample_input_file sample_output_file
        num_samples recompute eval_results_prefix eval_tasks""",
    "belongs to a feature that is off": """
        rpe_num_buckets rpe_max_distance scalenorm_epsilon gmlp_attn_dim param_sharing_style
        adlr_autoresume_interval coord_check save_base_shapes base_shapes_file mup_init_scale
        mup_attn_temp mup_output_temp mup_embedding_mult mup_rp_embedding_mult mup_width_scale te_fp8_format te_fp8_wgrad
        te_fp8_amax_history_len te_fp8_amax_compute_algo te_fp8_margin moe_top_k moe_loss_coeff moe_router_type
        moe_token_dropping moe_train_capacity_factor moe_eval_capacity_factor moe_min_capacity expert_interval
        masked_lm_prob mean_noise_span_length num_encoder_layers decoder_seq_length""",
}

IGNORED: dict[str, str] = {key: reason for reason, keys in IGNORED_BY_REASON.items() for key in keys.split()}
"""Key → why it has no meaning here."""


@dataclass(frozen=True)
class Refusal:
    """A key that is accepted only at the values that ask for nothing."""

    accepted: tuple[Any, ...]
    reason: str

    def accepts(self, value: Any) -> bool:
        off = isinstance(value, Mapping) and not value.get("enabled", False)
        return value is None or off or any(type(value) is type(one) and value == one for one in self.accepted)


def _refuse(reason: str, *accepted: Any) -> Refusal:
    return Refusal(accepted, reason)


_NOT_YET = "not supported in this version; remove it"

REFUSED: dict[str, Refusal] = {
    # model
    "model_arch": _refuse("only decoder-only models are trained; write model_arch: gpt2 or remove it", "gpt2"),
    "mlp_type": _refuse(
        "write activation: swiglu with mlp_multiple_of: 256 (or intermediate_size) for Llama's MLP", "regular"
    ),
    "expansion_factor": _refuse("write intermediate_size, the MLP's true width"),
    "sliding_window_width": _refuse(_NOT_YET),
    "num_unique_layers": _refuse("write recursion, such as 4+8R2+4, for layers that share weights"),
    "opt_pos_emb_offset": _refuse(_NOT_YET, 0),
    "openai_gelu": _refuse("gelu is the exact one; remove it", False),
    "soft_prompt_tuning": _refuse(_NOT_YET),
    "use_mup": _refuse(_NOT_YET, False),
    "moe_num_experts": _refuse("mixtures of experts are not supported; remove it", 0, 1),
    "num_experts": _refuse("mixtures of experts are not supported; remove it", 0, 1),
    "te_columnparallel": _refuse("Transformer Engine is not used; remove it", False),
    "te_rowparallel": _refuse("Transformer Engine is not used; remove it", False),
    "te_layernorm_mlp": _refuse("Transformer Engine is not used; remove it", False),
    "te_mha": _refuse("Transformer Engine is not used; remove it", False),
    "te_fp8_mha": _refuse("Transformer Engine is not used; remove it", False),
    "fp16_lm_cross_entropy": _refuse("the loss is always computed in fp32; remove it", False),
    "padded_vocab_size": _refuse("write vocab_size (unpadded) and make_vocab_size_divisible_by"),
    "extra_sentinel_tokens": _refuse(_NOT_YET, 0),
    # parallelism
    "context_parallel_size": _refuse(_NOT_YET, 0, 1),
    "moe_expert_parallel_size": _refuse(_NOT_YET, 1),
    "use_axonn_model_parallelism": _refuse(_NOT_YET, False),
    # optimizer
    "lr": _refuse("write optimizer: {type: AdamW, params: {lr: …}}, or --set optimizer.params.lr=…"),
    "optimizer_type": _refuse("write optimizer: {type: AdamW, params: {…}}", "adam"),
    "use_bnb_optimizer": _refuse("only AdamW is supported; remove it", False),
    "zero_stage": _refuse("write zero_optimization: {stage: …}"),
    "zero_reduce_scatter": _refuse("write zero_optimization: {reduce_scatter: …}"),
    "zero_contiguous_gradients": _refuse("write zero_optimization: {contiguous_gradients: …}"),
    "zero_reduce_bucket_size": _refuse("write zero_optimization: {reduce_bucket_size: …}"),
    "zero_allgather_bucket_size": _refuse("write zero_optimization: {allgather_bucket_size: …}"),
    "scheduler": _refuse("write lr_decay_style, warmup, min_lr and lr_decay_iters"),
    "prescale_gradients": _refuse("gradients are averaged in fp32; remove it", False),
    "gradient_predivide_factor": _refuse("gradients are averaged in fp32; remove it", 1, 1.0),
    "sparse_gradients": _refuse(_NOT_YET, False),
    "communication_data_type": _refuse("gradients are reduced in their accumulation type; remove it"),
    "data_types": _refuse("gradients accumulate in fp32 always; remove it", {"grad_accum_dtype": "fp32"}),
    "amp": _refuse("write precision: bfloat16"),
    # training
    "batch_size": _refuse("write train_micro_batch_size_per_gpu (one process), or train_batch_size (all processes)"),
    "checkpoint_in_cpu": _refuse("activations are recomputed, not moved to the CPU; remove it", False),
    "activation_checkpointing": _refuse("write checkpoint_activations and checkpoint_num_layers"),
    "exit_interval": _refuse("write train_iters"),
    "curriculum_learning": _refuse(_NOT_YET),
    "curriculum_seqlen": _refuse(_NOT_YET, 0),
    "data_efficiency": _refuse(_NOT_YET),
    "compression_training": _refuse(_NOT_YET),
    "elasticity": _refuse(_NOT_YET),
    "autotuning": _refuse(_NOT_YET),
    "autotuning_run": _refuse(_NOT_YET),
    "adlr_autoresume": _refuse("a run resumes by itself from save; remove it", False),
    "train_impl": _refuse("only pretraining is supported; remove it", "normal"),
    # data
    "label_data_paths": _refuse("write train_data_paths with train_label_data_paths, and so for valid and test"),
    "dataset_impl": _refuse("only plain pretraining data is read; remove it", "gpt2"),
    "eod_mask_loss": _refuse(_NOT_YET, False),
    "packing": _refuse("write pack_impl: packed, which is the default", False),
    "loss_on_targets_only": _refuse(_NOT_YET, False),
    "char_level_ppl": _refuse(_NOT_YET, False),
    # checkpoints
    "checkpoint": _refuse("MegaMesh writes its own checkpoint format; remove it"),
    "load_universal": _refuse("any checkpoint loads in any layout; remove it", False),
    "no_save_optim": _refuse("checkpoints always hold the optimizer; remove it", False),
    "s3_path": _refuse(_NOT_YET),
    # logging
    "use_wandb": _refuse("write tensorboard_dir; Weights & Biases is not supported in this version", False),
    "use_comet": _refuse("write tensorboard_dir; Comet is not supported", False),
    "tensorboard": _refuse("write tensorboard_dir"),
    "wandb": _refuse("write tensorboard_dir; Weights & Biases is not supported in this version"),
    "csv_monitor": _refuse("write tensorboard_dir"),
    "comms_logger": _refuse(_NOT_YET),
    "log_grad_pct_zeros": _refuse(_NOT_YET, False),
    "log_param_norm": _refuse(_NOT_YET, False),
    "log_optimizer_states": _refuse(_NOT_YET, False),
    "log_gradient_noise_scale": _refuse(_NOT_YET, False),
    "memory_profiling": _refuse(_NOT_YET, False),
    "profile": _refuse(_NOT_YET, False),
}
