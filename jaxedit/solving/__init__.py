"""What the editing methods share: keys, values, the solver."""
