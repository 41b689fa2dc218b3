"""`glot explain`: what a trained run weighs and joins in a text, and what its answer becomes when something is left out."""
