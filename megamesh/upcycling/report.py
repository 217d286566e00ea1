"""What an upcycling did, as text: where every block came from, how large the model is now, and what its losses are."""

from collections.abc import Sequence

from megamesh.evaluation.perplexity import perplexity
from megamesh.evaluation.text_loss import TextLoss
from megamesh.model.recursion.scheme import describe
from megamesh.tables import aligned
from megamesh.upcycling.model import Upcycling
from megamesh.upcycling.seeds import Seeds


def describe_seeds(seeds: Seeds) -> str:
    """One row per core block; prelude and coda, which are copies of neighbours, in one row each."""
    layout = seeds.layout
    rows = [["block", "source's layer"]]
    if layout.num_prelude:
        rows.append([_span("prelude.", 0, layout.num_prelude), _span("", 0, layout.num_prelude)])
    for index, sources in enumerate(seeds.core):
        rows.append([f"core.{index}", " + ".join(map(str, sources)) + (" (mean)" if len(sources) > 1 else "")])
    if layout.num_coda:
        rows.append([_span("coda.", 0, layout.num_coda), _span("", seeds.first_coda_layer, layout.num_coda)])
    text = aligned(rows)
    return f"{text}\nplain recursion of these is the source itself" if seeds.same_layers else text


def describe_sizes(plan: Upcycling) -> str:
    """Depth and parameters, before and after."""
    before, after = plan.parameters()
    layout = plan.seeds.layout
    blocks = layout.num_prelude + layout.num_core_weights + layout.num_coda
    rows = [
        ["", "source", "upcycled"],
        ["compute depth", str(plan.seeds.num_source_layers), str(layout.compute_depth)],
        ["blocks with weights", str(plan.seeds.num_source_layers), str(blocks)],
        ["parameters", f"{before.total:,}", f"{after.total:,}"],
        ["without embeddings", f"{before.non_embedding:,}", f"{after.non_embedding:,}"],
        ["in routers", "0", f"{after.routers:,}"],
    ]
    return aligned(rows)


def describe_start(plan: Upcycling) -> str:
    """How close the scheme's first forward pass is to plain recursion."""
    return describe(plan.run.recursion).upcycled_words


def describe_losses(losses: Sequence[tuple[str, TextLoss]]) -> str:
    """A row per model: mean loss and perplexity of the same tokens."""
    rows = [["model", "loss (nats per token)", "perplexity"]]
    rows += [[name, f"{found.loss:.4f}", f"{perplexity(found.loss):,.2f}"] for name, found in losses]
    return f"{aligned(rows)}\nmeans over {losses[0][1].num_tokens:,} tokens of the text"


def _span(stem: str, first: int, count: int) -> str:
    last = first + count - 1
    return f"{stem}{first}" if count == 1 else f"{stem}{first} to {last}"
