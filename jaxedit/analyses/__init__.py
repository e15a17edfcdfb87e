"""Experiments on finished studies.

How well damage was predicted, perplexity against downstream tasks, and the paper's numbers.
"""
