"""Keys of indexed files and of how samples are drawn from them."""

from typing import Literal

from pydantic import Field

from megamesh.config.keys.section import Section

NUM_SPLITS = 3


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
