"""Which layout of a model on a number of GPUs is fastest, and why others are not possible."""
