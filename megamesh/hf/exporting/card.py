"""The README.md that travels with an export."""

from collections.abc import Mapping

from megamesh.config.keys import ModelConfig, RecursionConfig
from megamesh.hf.names import Architecture
from megamesh.model.counts import count_parameters
from megamesh.model.recursion.scheme import describe

_CARD = """---
library_name: transformers
pipeline_tag: text-generation
---

# {name}

A language model pretrained with MegaMesh.

| | |
|---|---|
| architecture | {architecture} |
| parameters | {parameters} ({non_embedding} without embeddings and head) |
| layers | {layers} |
| hidden size, heads, key/value heads | {hidden}, {heads}, {kv_heads} |
| longest trained sequence | {length} |
| vocabulary | {vocab} token ids |
| weights | {dtype} |

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}"{trust})
model = AutoModelForCausalLM.from_pretrained("{name}"{trust})
inputs = tokenizer(["Once upon a time"], return_tensors="pt", padding=True)
print(tokenizer.batch_decode(model.generate(**inputs, max_new_tokens=40), skip_special_tokens=True)[0])
```
{unknown}{recursion}{training}"""

_UNKNOWN = """
The tokenizer knows {known} of the model's {rows} token ids, and no text encodes to the others. `generate` suppresses them; code that
samples from the logits itself should do the same.
"""

_RECURSION = """
The core layers run {loops} times in a forward pass, so keys and values are cached for {depth} layers, the compute depth
(`num_hidden_layers`). Recursion scheme: {scheme}. The code beside the weights is written for transformers 5.23 and needs nothing else.
"""

_TRAINING = """
## Training

| | |
|---|---|
{rows}
"""


def model_card(
    name: str,
    architecture: Architecture,
    model: ModelConfig,
    recursion: RecursionConfig,
    vocab_size: int,
    num_known_ids: int,
    dtype: str,
    facts: Mapping[str, str],
    *,
    tokenizer_code: bool = False,
) -> str:
    """Text of the card: what the model is, how to load it, which of its `vocab_size` token ids the tokenizer does not know, and `facts`
    of its training, texts by label. `tokenizer_code`: the tokenizer's code travels with the model."""
    layout, counts = recursion.layout, count_parameters(model, recursion, vocab_size)
    kind = {
        "gpt_neox": "GPTNeoXForCausalLM",
        "llama": "LlamaForCausalLM",
        "megamesh": "MegaMeshForCausalLM (code included)",
    }
    rows = "\n".join(f"| {label} | {text} |" for label, text in facts.items())
    return _CARD.format(
        name=name,
        architecture=kind[architecture],
        parameters=f"{counts.total:,}",
        non_embedding=f"{counts.non_embedding:,}",
        layers=f"{layout} ({model.num_layers} of compute)" if layout else model.num_layers,
        hidden=model.hidden_size,
        heads=model.num_attention_heads,
        kv_heads=model.kv_heads,
        length=_lengths(model),
        vocab=vocab_size,
        unknown=_UNKNOWN.format(known=num_known_ids, rows=vocab_size) if num_known_ids < vocab_size else "",
        dtype=dtype,
        trust=", trust_remote_code=True" if architecture == "megamesh" or tokenizer_code else "",
        recursion=_about_recursion(model, recursion),
        training=_TRAINING.format(rows=rows) if facts else "",
    )


def _lengths(model: ModelConfig) -> str:
    trained, limit = model.sequence_length, model.longest_sequence
    return (
        f"{trained} tokens"
        if trained == limit
        else f"{trained} tokens (`trained_sequence_length`), of {limit} that it takes"
    )


def _about_recursion(model: ModelConfig, recursion: RecursionConfig) -> str:
    layout = recursion.layout
    if layout is None:
        return ""
    return _RECURSION.format(loops=layout.num_loops, depth=model.num_layers, scheme=describe(recursion).card_words)
