"""The same logits from the folder that was imported and from the checkpoint that it became, in fp32.

    checkpoint ──▶ our Transformer ───────────────────────────▶ logits ─┐
    folder ──▶ transformers' class, or that of our exports ────▶ logits ─┴▶ equal?     check_logits: the whole model
    some layers of both, some rows of the vocabulary ──────────────────────▶ the same  check_layers: what is too large for that

Both read what is on the disk, and are in memory one after the other. No code that lies in the folder is run.
"""

import json
from typing import Any, Literal

import torch
from transformers import GPTNeoXForCausalLM, LlamaForCausalLM

from megamesh.checkpoint.inference import OpenCheckpoint, load_model
from megamesh.checkpoint.reader import read_weights
from megamesh.hf.exporting.bound import choose_check
from megamesh.hf.exporting.compare import Agreement, judge, sampled_keys, their_logits, tokens_to_compare
from megamesh.hf.exporting.sample import Sample, sample_layers
from megamesh.hf.exporting.source import checkpoint_source
from megamesh.hf.importing.pretrained import CONFIG_FILE, Pretrained
from megamesh.hf.names import Architecture, names_table
from megamesh.hf.remote.modeling_megamesh import MegaMeshForCausalLM
from megamesh.model.build import empty_model

Check = Literal["auto", "logits", "layers", "none"]
CLASSES: dict[Architecture, Any] = {
    "gpt_neox": GPTNeoXForCausalLM,
    "llama": LlamaForCausalLM,
    "megamesh": MegaMeshForCausalLM,
}
COMPARED: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "sdpa", "output_loading_info": True}
HOW_IT_RUNS = {
    "_attn_implementation", "_attn_implementation_internal", "attn_implementation", "_experts_implementation", "experts_implementation",
    "return_dict", "use_return_dict", "output_attentions", "output_hidden_states",
}  # fmt: skip
"""Keys of a config.json that change no logits: the comparison wants logits by name, computed anywhere."""


def check_import(pretrained: Pretrained, opened: OpenCheckpoint, check: Check) -> Agreement | None:
    """Compare as `check` says; `auto` takes the whole model where memory allows, else a sample. CheckpointError where they differ."""
    if check == "none":
        return None
    if check == "auto":
        stored = next(iter(pretrained.weights.stored.values()))
        check = choose_check(checkpoint_source(opened), pretrained.table, getattr(torch, stored.dtype))
    return check_logits(pretrained, opened) if check == "logits" else check_layers(pretrained, opened)


@torch.no_grad()
def check_logits(pretrained: Pretrained, opened: OpenCheckpoint) -> Agreement:
    """Compare the whole models. CheckpointError where they differ."""
    tokens_BS = tokens_to_compare(opened.run.model, opened.vocab_size)
    ours_BSV = load_model(opened, "cpu", torch.float32).logits(tokens_BS)
    architecture = pretrained.config.architecture
    module, info = CLASSES[architecture].from_pretrained(
        pretrained.folder, config=_their_config(pretrained, {}), local_files_only=True, **COMPARED
    )
    theirs_BSV = their_logits(pretrained.folder, module, info, tokens_BS)
    return judge(str(pretrained.folder), ours_BSV, theirs_BSV, "the whole model")


@torch.no_grad()
def check_layers(pretrained: Pretrained, opened: OpenCheckpoint) -> Agreement:
    """Compare a shallow model made of some layers of both. CheckpointError where they differ."""
    model, recursion = opened.run.model, opened.run.recursion
    sample = sample_layers(model, recursion, opened.vocab_size)
    tokens_BS = tokens_to_compare(sample.model, len(sample.rows))
    ours = empty_model(sample.model, sample.recursion, len(sample.rows)).eval()
    parameters = dict(ours.named_parameters())
    for name, tensor in read_weights(opened.path, sample.names):
        parameters[sample.names[name]].copy_(sample.cut(name, tensor))
        del tensor  # before the next one is read
    ours_BSV = ours.logits(tokens_BS)
    del ours, parameters
    module, info = _their_sample(pretrained, opened, sample)
    theirs_BSV = their_logits(pretrained.folder, module, info, tokens_BS)
    return judge(str(pretrained.folder), ours_BSV, theirs_BSV, f"a sample ({sample})")


def _their_sample(pretrained: Pretrained, opened: OpenCheckpoint, sample: Sample) -> Any:
    """Their class with the folder's configuration, but for what is sampled, and tensors; and what it says of loading them."""
    architecture = pretrained.config.architecture
    config = _their_config(pretrained, sampled_keys(architecture, checkpoint_source(opened), sample))
    table = names_table(architecture, sample.model, sample.recursion)
    state = {
        target: sample.cut(deep, pretrained.weights.read(pretrained.names[theirs])).float()
        for deep, short in sample.names.items()
        for theirs, target in zip(pretrained.table[deep].theirs, table[short].theirs, strict=True)
    }
    return CLASSES[architecture].from_pretrained(None, config=config, state_dict=state, **COMPARED)


def _their_config(pretrained: Pretrained, changes: dict[str, Any]) -> Any:
    """The folder's configuration, with `changes`, but for the keys that say how a model is run and what it returns."""
    keys = json.loads((pretrained.folder / CONFIG_FILE).read_text(encoding="utf-8"))
    kept = {key: value for key, value in keys.items() if key not in HOW_IT_RUNS}
    return CLASSES[pretrained.config.architecture].config_class(**(kept | changes))
