"""Keys and values of the tokens so far, one store per compute layer.

A looped core calls its blocks once per loop, and each call attends to the keys of its own loop: the cache is keyed by compute layer
(prelude, then loop by loop, then coda), never by block. Room is allocated once: joining tensors anew for every token copies the whole
cache each time (12 layers of 768, 4 sequences of 512 tokens, one CPU core: 71 ms per token against 36).

Letters: B batch, S new tokens, C capacity in tokens, G key/value heads, d head dimension.
"""

from torch import Tensor


class KVCache:
    """Room for `capacity` tokens per compute layer, allocated at a layer's first use. `length` tokens are filled."""

    def __init__(self, num_layers: int, capacity: int):
        self.capacity = capacity
        self.length = 0
        self._keys: list[Tensor | None] = [None] * num_layers
        self._values: list[Tensor | None] = [None] * num_layers

    def update(self, layer: int, k_BGSd: Tensor, v_BGSd: Tensor) -> tuple[Tensor, Tensor]:
        """Append keys and values to one compute layer; all of that layer's, as views [B, G, length + S, d]."""
        end = self.length + k_BGSd.shape[2]
        assert end <= self.capacity, f"{end} tokens in a cache for {self.capacity}"
        keys, values = self._keys[layer], self._values[layer]
        if keys is None or values is None:
            batch, heads, _, width = k_BGSd.shape
            keys, values = (x.new_empty(batch, heads, self.capacity, width) for x in (k_BGSd, v_BGSd))
            self._keys[layer], self._values[layer] = keys, values
        keys[:, :, self.length : end] = k_BGSd
        values[:, :, self.length : end] = v_BGSd
        return keys[:, :, :end], values[:, :, :end]

    def advance(self, num_tokens: int) -> None:
        """Count `num_tokens` as filled, after every layer has been updated with them."""
        self.length += num_tokens

    def keep_rows(self, rows: Tensor) -> None:
        """Drop all sequences of the batch but `rows`, an index tensor."""
        self._keys = [None if keys is None else keys[rows] for keys in self._keys]
        self._values = [None if values is None else values[rows] for values in self._values]
