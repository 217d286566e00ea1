"""Side effects of training, one subject per file; `training/trainer.py` says when each is called."""
