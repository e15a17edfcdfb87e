"""The methods again, in plain PyTorch and NumPy, and what the comparisons with them share."""
