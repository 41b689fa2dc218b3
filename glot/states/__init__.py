"""Token states of a frozen backbone: computed, stored, read."""
