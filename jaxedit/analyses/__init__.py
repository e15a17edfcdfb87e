"""Experiments on finished studies: how well damage was predicted, perplexity against tasks, the
paper's numbers.
"""
