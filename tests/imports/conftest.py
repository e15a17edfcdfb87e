"""Adapters of the golden checkpoints, with what peft computes with them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapter_examples import rows, write_adapter
from reference.models import hf_logits


@pytest.fixture(scope="module")
def adapter(shared, tmp_path_factory):
    """Make a function: (family, **LoraConfig) -> the adapter's folder, and peft's logits."""

    def make(family: str, **lora: Any) -> tuple[Path, np.ndarray]:
        out = tmp_path_factory.mktemp(f"adapter-{family}")
        model = write_adapter(shared / "golden" / family, out, **lora)
        return out, hf_logits(model, rows(model.config.vocab_size))

    return make
