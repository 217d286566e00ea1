"""Text from a model: KV cache, sampling, batches of prompts."""
