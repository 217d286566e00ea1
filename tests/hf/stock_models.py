"""Small models of transformers, and folders of them as they are found: today's, old ones, in one file or in shards."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

from tests.hf.small_models import KNOWN, scramble, tokenizer

SIZES = dict(vocab_size=KNOWN, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=64)
STOCK = ("neox-parallel", "neox-sequential", "neox-tied", "neox-unbiased", "llama", "llama-tied", "llama-biased")
OLD_PYTHIA: dict[str, Any] = {
    "architectures": ["GPTNeoXForCausalLM"],
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_act": "gelu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 128,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 64,
    "model_type": "gpt_neox",
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "rotary_emb_base": 10000,
    "rotary_pct": 0.25,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.24.0",
    "use_cache": True,
    "use_parallel_residual": True,
    "vocab_size": 64,
}
OLD_LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.31.0.dev0",
    "use_cache": True,
    "vocab_size": 64,
}


def stock_model(name: str, **changes: Any) -> Any:
    """A model of random weights in fp32; `name` is one of STOCK."""
    kind, _, variant = name.partition("-")
    if kind == "llama":
        keys = dict(
            intermediate_size=48,
            num_key_value_heads=2,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 5e3},
            tie_word_embeddings=variant == "tied",
            attention_bias=variant == "biased",
            mlp_bias=variant == "biased",
        )
        module: Any = LlamaForCausalLM(LlamaConfig(**(SIZES | keys | changes)))
    else:
        keys = dict(
            intermediate_size=96,
            use_parallel_residual=variant == "parallel",
            layer_norm_eps=1e-4,
            rope_parameters={"rope_type": "default", "rope_theta": 5e3, "partial_rotary_factor": 0.25},
            tie_word_embeddings=variant == "tied",
            attention_bias=variant != "unbiased",
        )
        module = GPTNeoXForCausalLM(GPTNeoXConfig(**(SIZES | keys | changes)))
    scramble(module)
    return module.eval()


def saved(module: Any, folder: Path, **options: Any) -> Path:
    """What save_pretrained writes of a model and our tokenizer of characters."""
    module.save_pretrained(folder, **options)
    tokenizer(folder.parent).save_pretrained(folder)
    return folder


def old_pythia(folder: Path, **changes: Any) -> tuple[Path, dict[str, torch.Tensor]]:
    """A folder as transformers 4.24 wrote Pythia's: fp16, a .bin file with buffers in it. And the tensors without buffers."""
    module = GPTNeoXForCausalLM(GPTNeoXConfig(**(OLD_PYTHIA | changes)))
    scramble(module)
    state = {name.replace("lm_head", "embed_out"): tensor.half() for name, tensor in module.state_dict().items()}
    buffers = {}
    for i in range(3):
        attention = f"gpt_neox.layers.{i}.attention"
        buffers[f"{attention}.bias"] = torch.ones(1, 1, 64, 64, dtype=torch.uint8).tril()
        buffers[f"{attention}.masked_bias"] = torch.tensor(-1e9)
        buffers[f"{attention}.rotary_emb.inv_freq"] = torch.ones(1)
    return written(folder, OLD_PYTHIA | changes, state | buffers, "pytorch_model.bin"), state


def old_llama(folder: Path, **changes: Any) -> tuple[Path, dict[str, torch.Tensor]]:
    """A folder like Llama-2's, with the rotary frequencies that its .bin files hold."""
    module = LlamaForCausalLM(LlamaConfig(**(OLD_LLAMA | changes)))
    scramble(module)
    state = {name: tensor.half() for name, tensor in module.state_dict().items()}
    buffers = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(3)}
    return written(folder, OLD_LLAMA | changes, state | buffers, "pytorch_model.bin"), state


def written(folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor], *files: str) -> Path:
    """A folder with these keys and tensors, divided over `files` in turn (with an index, where there are several)."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer(folder.parent).save_pretrained(folder)
    write_weights(folder, tensors, *files)
    return folder


def write_weights(folder: Path, tensors: dict[str, torch.Tensor], *files: str) -> None:
    weight_map = {name: files[i % len(files)] for i, name in enumerate(tensors)}
    for file in files:
        part = {name: tensors[name].clone() for name in tensors if weight_map[name] == file}
        if file.endswith(".bin"):
            torch.save(part, folder / file)
        else:
            save_file(part, folder / file, metadata={"format": "pt"})
    if len(files) > 1:
        single = "pytorch_model.bin" if files[0].endswith(".bin") else "model.safetensors"
        (folder / f"{single}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
