"""Requests and edits as values."""
