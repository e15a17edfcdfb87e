"""Changes that other programs made to a model: read, applied, and checked for damage."""
