"""Text corpora → indexed datasets, on one machine or many.

    inputs ─ data/sources ─▶ shards ─▶ [worker: records ─▶ encoder ─▶ token files] ─▶ joined by copying bytes ─▶ .bin/.idx, manifest

    run.py      the order of the steps                     ranks.py     one process, or the ranks of an MPI job
    folder.py   where unfinished work lives, and its lock  pool.py      worker processes of one rank
    shard.py    one shard: encoded, or found complete      join.py      shards side by side in the final files
    encoders.py records → token ids (and labels)           progress.py  what is done, as numbers and as a line

What is written depends on inputs and options, never on the number of workers or ranks, on interruptions, or on the engine
that tokenizes.
"""

from megamesh.data.preprocessing.places import output_prefix
from megamesh.data.preprocessing.run import Summary, preprocess
from megamesh.data.preprocessing.shard import Settings

__all__ = ["Settings", "Summary", "output_prefix", "preprocess"]
