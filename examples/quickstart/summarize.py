"""The quickstart's result: loss.png, and a table of the two models beside a unigram model of the same corpus."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from megamesh.checkpoint.reader import read_meta
from megamesh.config.sections import RunConfig
from megamesh.data.store.indexed import IndexedDataset
from megamesh.data.store.splits import split_documents
from megamesh.diagnostics.plots import LossCurve, plot_losses
from megamesh.evaluation.perplexity import perplexity
from megamesh.evaluation.unigram import unigram_loss
from megamesh.model.counts import count_parameters
from megamesh.tokenizer.build import build_tokenizer
from megamesh.training.hooks.metrics_file import read_metrics


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, required=True, help="folder that holds the save folders mesh and base")
    parser.add_argument("--output", type=Path, required=True, help="picture to write")
    args = parser.parse_args(arguments)
    configs = {name: RunConfig.model_validate(read_meta(args.runs / name).config) for name in ("mesh", "base")}
    vocab_size = build_tokenizer(configs["mesh"].tokenizer).vocab_size
    baseline = unigram(configs["mesh"], vocab_size)
    rows: list[tuple[str, ...]] = []
    curves = {}
    for name, config in configs.items():
        metrics = read_metrics(args.runs / name / "metrics.jsonl")
        points = {
            kind: [(row["consumed_tokens"], row["loss"]) for row in metrics if row["kind"] == kind]
            for kind in ("train", "valid")
        }
        curves[name] = LossCurve(**points)
        tokens, loss = points["valid"][-1]
        counts = count_parameters(config.model, config.recursion, config.model.padded_vocab_size(vocab_size))
        scheme = f"{config.recursion.recursion}, {config.recursion.recursion_scheme}"
        rows.append(
            (scheme, f"{counts.total:,}", f"{counts.non_embedding:,}", f"{tokens:,.0f}", f"{perplexity(loss):.2f}")
        )
    rows.append(("unigram", f"{vocab_size - 1:,}", "", "all of training", f"{perplexity(baseline):.2f}"))
    plot_losses(curves, args.output, {"unigram, validation": baseline})
    print(f"wrote {args.output}\n")
    print(table(("model", "parameters", "non-embedding", "tokens seen", "validation perplexity"), rows))


def unigram(config: RunConfig, vocab_size: int) -> float:
    """Validation loss of the corpus' token frequencies, on the documents that the models were trained and evaluated on."""
    assert config.data.data_path is not None
    indexed = IndexedDataset(config.data.data_path)
    train, valid, _ = split_documents(config.data.split_shares, len(indexed))
    counts = [
        sum((np.bincount(indexed[i], minlength=vocab_size) for i in range(*part)), np.zeros(vocab_size, dtype=np.int64))
        for part in (train, valid)
    ]
    return unigram_loss(*counts)


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [
        [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in (header, *rows)
    ]
    return "\n".join("  ".join(line) for line in lines)


if __name__ == "__main__":
    main()
