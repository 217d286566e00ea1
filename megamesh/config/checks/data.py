"""Rules of data and tokenizer."""

from collections.abc import Iterator

from megamesh.config.rule import Given, Rule, rule

SPLITS = ("train", "valid", "test")
WEIGHT_KEYS = ("weight_by_num_tokens", "weight_by_num_documents")


@rule("data_path", "train_data_paths", "valid_data_paths", "test_data_paths")
def data_is_said_once(given: Given) -> Iterator[str]:
    lists = [key for key in (f"{split}_data_paths" for split in SPLITS) if given.has(key)]
    if given.has("data_path") and lists:
        yield f"{given.show('data_path')} and {given.show(lists[0])} exclude each other; split divides data_path into train, valid and test"
    elif lists and given.run.data.train_data_paths is None:
        yield f"{given.show(lists[0])} needs train_data_paths beside it"
    for key in lists:
        if given.value(key) == []:
            yield f"{given.show(key)} is empty; list at least one prefix or remove it"


@rule("data_path", "train_data_paths", for_training=True)
def data_is_given(given: Given) -> Iterator[str]:
    if not given.has("data_path") and not given.has("train_data_paths"):
        yield "no data is given; write data_path (one prefix, divided by split) or train_data_paths and valid_data_paths"


@rule(*(f"{split}_data_{kind}" for split in SPLITS for kind in ("paths", "weights")))
def weights_match_paths(given: Given) -> Iterator[str]:
    for split in SPLITS:
        paths, weights = given.value(f"{split}_data_paths"), given.value(f"{split}_data_weights")
        if weights is None:
            continue
        shown = given.show(f"{split}_data_weights")
        if paths is None:
            yield f"{shown} needs {split}_data_paths"
        elif len(weights) != len(paths):
            yield f"{shown} has {len(weights)} weights for the {len(paths)} prefixes of {split}_data_paths; give one each"
        elif min(weights, default=0) < 0 or sum(weights) <= 0:
            yield f"{shown}: weights must not be negative, and one must be positive"


@rule(*(f"{split}_{kind}" for split in SPLITS for kind in ("data_paths", "label_data_paths")))
def labels_match_paths(given: Given) -> Iterator[str]:
    for split in SPLITS:
        paths, labels = given.value(f"{split}_data_paths"), given.value(f"{split}_label_data_paths")
        if labels is not None and len(labels) != len(paths or []):
            shown = given.show(f"{split}_label_data_paths")
            yield f"{shown} has {len(labels)} prefixes for the {len(paths or [])} of {split}_data_paths; give one each, or none"


@rule("train_data_paths", *WEIGHT_KEYS, *(f"{split}_data_weights" for split in SPLITS))
def weights_are_said_once(given: Given) -> Iterator[str]:
    by_size = [key for key in WEIGHT_KEYS if given.value(key)]
    lists = [key for key in (f"{split}_data_weights" for split in SPLITS) if given.has(key)]
    if by_size and len(by_size + lists) > 1:
        yield f"{' and '.join(map(given.show, (by_size + lists)[:2]))} both decide the weights of a blend; keep one"
    if by_size and not given.has("train_data_paths"):
        yield f"{given.show(by_size[0])} needs train_data_paths, whose weights it decides"


@rule("weighted_document_limit", "weight_by_num_documents")
def limit_has_documents(given: Given) -> Iterator[str]:
    data = given.run.data
    if data.weighted_document_limit is not None and not data.weight_by_num_documents:
        yield f"{given.show('weighted_document_limit')} has no effect without weight_by_num_documents; add it or remove this"


@rule("train_epochs", "train_data_paths", "train_data_weights", "weighted_sampler_alpha", *WEIGHT_KEYS)
def passes_have_no_weights(given: Given) -> Iterator[str]:
    if not given.has("train_epochs") or len(given.value("train_data_paths") or []) < 2:
        return
    data = given.run.data
    contradicting = [
        *(["train_data_weights"] if given.has("train_data_weights") else []),
        *(["weight_by_num_documents"] if data.weight_by_num_documents else []),
        *(["weighted_sampler_alpha"] if data.weight_by_num_tokens and data.weighted_sampler_alpha != 1 else []),
    ]
    if contradicting:
        yield (
            f"{given.show('train_epochs')} passes over each of train_data_paths leave no choice to {given.show(contradicting[0])}; "
            "remove it, or write train_iters"
        )


@rule("valid_per_dataset", "valid_data_paths", "eval_iters")
def validation_parts_have_paths(given: Given) -> Iterator[str]:
    if given.run.data.valid_per_dataset and not given.run.training.eval_iters:
        yield f"{given.show('valid_per_dataset')} has no effect with {given.show('eval_iters')}; change one of them"
    if given.run.data.valid_per_dataset and not given.has("valid_data_paths"):
        yield f"{given.show('valid_per_dataset')} needs valid_data_paths, whose losses it shows; add them or remove it"


@rule("split", "data_path", "eval_iters")
def split_has_shares(given: Given) -> Iterator[str]:
    try:
        train, valid, _ = given.run.data.split_shares
    except ValueError as error:
        yield f"{given.show('split')}: {error}; write shares of train, valid and test such as 969,30,1"
        return
    if not given.has("data_path"):
        return
    if train == 0:
        yield f"{given.show('split')} leaves nothing to train on; give the first share a value above 0"
    if valid == 0 and given.run.training.eval_iters:
        yield f"{given.show('split')} leaves nothing to validate on; write eval_iters: 0, or give the second share a value above 0"


@rule("train_data_paths", "valid_data_paths", "eval_iters")
def evaluation_has_data(given: Given) -> Iterator[str]:
    if given.has("train_data_paths") and not given.has("valid_data_paths") and given.run.training.eval_iters:
        yield f"{given.show('eval_iters')} evaluations need valid_data_paths; add them, or write eval_iters: 0"


@rule("vocab_size", "tokenizer_type", "vocab_file", "merge_file", for_training=True)
def vocabulary_is_known(given: Given) -> Iterator[str]:
    if not given.has("vocab_size") and not given.has("vocab_file"):
        yield f"{given.show('tokenizer_type')} needs vocab_file; write its path"
    tokenizer = given.run.tokenizer
    if given.has("vocab_file") and tokenizer.merge_file is None and tokenizer.tokenizer_type == "GPT2BPETokenizer":
        yield (
            f"{given.show('tokenizer_type')} needs merge_file beside {given.show('vocab_file')}; write the path of merges.txt, "
            "or tokenizer_type: HFTokenizer for a tokenizer.json"
        )


DATA_RULES: tuple[Rule, ...] = (
    data_is_said_once,
    data_is_given,
    weights_match_paths,
    labels_match_paths,
    weights_are_said_once,
    limit_has_documents,
    passes_have_no_weights,
    validation_parts_have_paths,
    split_has_shares,
    evaluation_has_data,
    vocabulary_is_known,
)
