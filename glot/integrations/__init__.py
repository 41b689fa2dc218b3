"""Other frameworks: MTEB and sentence-transformers. No other package imports them."""
