"""Small models with weights that matter (nothing at 0 or 1), a tokenizer of characters, and exports of both."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from megamesh.config.keys import ModelConfig, RecursionConfig, TokenizerConfig, TrainingConfig
from megamesh.hf.exporting.export import export_model
from megamesh.hf.exporting.source import ModelSource
from megamesh.model.build import build_model
from megamesh.model.transformer import Transformer
from megamesh.tokenizer import Tokenizer, build_tokenizer

CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ .\n"
KNOWN = len(CHARACTERS) + 2  # token ids of the tokenizer
MESH = RecursionConfig(recursion="1+1R2+1")
PLAIN = RecursionConfig()


def model_config(**changes) -> ModelConfig:
    keys = dict(
        num_layers=4,
        hidden_size=32,
        num_attention_heads=4,
        max_position_embeddings=64,
        pos_emb="rotary",
        rotary_pct=0.5,
        no_weight_tying=True,
        gpt_j_residual=True,
    )
    return ModelConfig(**(keys | changes))


def llama_config(**changes) -> ModelConfig:
    keys = dict(
        rotary_pct=1.0,
        gpt_j_residual=False,
        norm="rmsnorm",
        rms_norm_epsilon=1e-6,
        activation="swiglu",
        intermediate_size=48,
        num_kv_heads=2,
        use_bias_in_attn_linear=False,
        use_bias_in_mlp=False,
    )
    return model_config(**(keys | changes))


@torch.no_grad()
def scramble(module: torch.nn.Module) -> None:
    """Draw every parameter anew, wide enough that each of them moves the logits."""
    generator = torch.Generator().manual_seed(7)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator) * 0.25
        parameter.copy_(noise + 1 if "norm" in name and name.endswith("weight") else noise)


def build(model: ModelConfig, recursion: RecursionConfig = MESH) -> Transformer:
    module = build_model(model, recursion, TrainingConfig(), model.vocab_size or KNOWN)
    scramble(module)
    return module.eval()


def source(module: Transformer, recursion: RecursionConfig = MESH) -> ModelSource:
    def weights(names: Iterable[str] | None = None) -> Iterator[tuple[str, torch.Tensor]]:
        parameters = dict(module.named_parameters())
        return ((name, parameters[name].detach()) for name in (parameters if names is None else names))

    return ModelSource(module.config, recursion, module.head.vocab_size, weights)


def tokenizer_file(folder: Path) -> Path:
    path = folder / "characters.json"
    path.write_text(json.dumps({"type": "megamesh-characters", "characters": sorted(CHARACTERS)}))
    return path


def tokenizer(folder: Path) -> Tokenizer:
    config = TokenizerConfig(tokenizer_type="CharLevelTokenizer", vocab_file=str(tokenizer_file(folder)))
    return build_tokenizer(config)


def export(module: Transformer, folder: Path, recursion: RecursionConfig = MESH, **options) -> Path:
    return export_model(source(module, recursion), tokenizer(folder), folder / "export", **options).output


def load(folder: Path, **options):
    """The export as a user loads it, in fp32."""
    options = {"dtype": torch.float32} | options
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **options).eval()


def tokens(size: int = 2, length: int = 20, seed: int = 0) -> torch.Tensor:
    return torch.randint(2, KNOWN, (size, length), generator=torch.Generator().manual_seed(seed))


def greedy_oracle(
    logits: Callable[[torch.Tensor], torch.Tensor], prompt: list[int], count: int, stop: int
) -> list[int]:
    """The most probable known token, `count` times, the whole text read anew for each."""
    text = list(prompt)
    for _ in range(count):
        best = int(logits(torch.tensor([text]))[0, -1, :KNOWN].argmax())
        if best == stop:
            break
        text.append(best)
    return text[len(prompt) :]
