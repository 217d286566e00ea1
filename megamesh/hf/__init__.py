"""Hugging Face: our models written for transformers, and transformers' models read into ours."""
