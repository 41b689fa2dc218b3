"""The training loop, its scores, and the run folder."""
