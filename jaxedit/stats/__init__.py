"""Second moments of MLP keys: collecting them from texts, their files, comparing them."""
