"""Indexed token files, how samples are drawn from them, and how they are written."""
