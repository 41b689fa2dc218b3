"""Other people's frameworks: MTEB and sentence-transformers. One module each; nothing else imports them."""
