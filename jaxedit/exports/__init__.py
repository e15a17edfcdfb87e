"""Edited models written for other programs, one format a file, and edits read from theirs."""
