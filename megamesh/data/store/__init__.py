"""Indexed token files: their format, reading, writing, merging, splitting, verifying."""
