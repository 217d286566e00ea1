"""What pipeline ranks send each other in one optimizer step.

    stage s ──h [T, D] (and h_emb in pass 0, where the scheme reads it)──▶ stage s + 1      once per micro-batch, forward
    stage s ◀──────────────── the gradient of each ──────────────────── stage s + 1      once per micro-batch, backward

Exact, in bytes of payload. The states of a highway are in none of it: they stay on the rank that keeps them.
"""

from megamesh.pipeline.stages import Partition


def p2p_bytes_per_step(
    partition: Partition, tokens: int, hidden: int, bytes_per_value: int, num_micro_batches: int
) -> list[int]:
    """Bytes that each pipeline rank sends to others in one optimizer step.

    With P ranks, M micro-batches, T `tokens` of a state on one rank (a micro-batch's; under sequence_parallel its 1/size of them) and D
    `hidden`, all ranks together send

        2 · T · D · bytes_per_value · M · (number of stages that pass a state on  +  P−1 where the scheme reads h_emb)

    P · passes − 1 stages pass a state on where the head has a weight of its own, P · passes where it is the embedding's: `passes`
    counts prelude, loops and coda, and the head's rank 0 comes once more after the last.
    """
    sent = [0] * partition.num_ranks
    if partition.num_ranks == 1:
        return sent
    for stage in partition.stages:
        num_bytes = stage.num_outputs * tokens * hidden * bytes_per_value * num_micro_batches
        sent[stage.rank] += num_bytes
        sent[(stage.rank + 1) % partition.num_ranks] += num_bytes
    return sent
