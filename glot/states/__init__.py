"""Token states of a backbone: computed, stored and read."""
