"""Side effects of training, one subject per file; `base.py` says when each is called."""
