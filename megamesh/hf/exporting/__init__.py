"""A checkpoint of ours as a Hugging Face folder; export.py is where to begin."""
