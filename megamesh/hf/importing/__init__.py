"""A Hugging Face folder as a checkpoint of ours; importing.py is where to begin."""
