"""Logical checkpoints: global names and shapes, any layout writes, any layout reads."""
