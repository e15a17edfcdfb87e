"""Second moments of MLP keys: gathering, files, comparison."""
