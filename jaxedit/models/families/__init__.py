"""Model families: one file for each HF model_type; see `jaxedit.models.family`."""
