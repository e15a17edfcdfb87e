"""Language models: one Flax decoder, its families, their checkpoints."""
