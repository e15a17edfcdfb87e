"""Useful FLOPs are those that torch counts when a Hugging Face model runs the same passes.

They are all products with weights; the attention's scores and sums, which depend on lengths, are
left out: torch computes them as batches of products (bmm)."""

import numpy as np
import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

import jaxedit
from jaxedit.flops import attention_flops, layer_flops, scoring_flops, value_flops

FAMILIES = ("gpt2", "gptj", "llama")
LAYER = 2
TEMPLATES = ("{}", "I am. {}", "The author said. {}")
SUBJECT, PROMPT, TARGET = "Bob", "{} lives in", "Paris"


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def hf_model(shared, family):
    """The golden model of a family in torch; its weights need no gradient."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        shared / "golden" / family, attn_implementation="eager"
    )
    return model.eval().requires_grad_(False)


def counted_flops(counter: FlopCounterMode) -> int:
    """What torch counted, without attention's scores and sums."""
    by_operation = counter.get_flop_counts()["Global"]
    return sum(flops for name, flops in by_operation.items() if "bmm" not in str(name))


def test_the_flops_of_scoring_are_torchs(golden, family, hf_model):
    lengths = np.array([7, 12])
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        for length in lengths:
            hf_model(torch.ones((1, int(length)), dtype=torch.long))
    config = golden(family).config
    # torch also computes the logits of the last tokens, which nothing follows.
    last = 2 * config.D * config.V * len(lengths)
    assert scoring_flops(config, lengths, config.L) + last == counted_flops(counter)


def test_attention_is_a_part_of_a_layer(golden, family):
    config = golden(family).config
    assert 0 < attention_flops(config) < layer_flops(config)


def rows_of_request(encode) -> list[tuple[int, int, int]]:
    """For each row of the optimisation: its prefix, its suffix, and the logits that are read.

    Counted by tokenising beginnings of its text. The suffix begins with the subject's last token
    and ends before the target's last one, which is only predicted; the KL term's prompt ends with
    the subject, whose logits are read."""
    rows = []
    for template in TEMPLATES:
        n_prefix = len(encode(template.format(SUBJECT))) - 1
        n_prompt = len(encode(template.format(PROMPT.format(SUBJECT))))
        n_tokens = len(encode(template.format(f"{PROMPT.format(SUBJECT)} {TARGET}")))
        rows.append((n_prefix, n_tokens - 1 - n_prefix, n_tokens - n_prompt))
    return [*rows, (rows[0][0], 1, 1)]


@pytest.mark.parametrize("n_steps", [1, 3])
def test_the_flops_of_a_values_optimisation_are_torchs(golden, family, hf_model, n_steps):
    """torch runs the passes of the optimisation, in a model that is cut above the edited layer.

    Once: all rows up to that layer, the prefixes through the rest. In each step: the suffixes
    through the layers above it, and back again in all steps but the last."""
    model = golden(family)
    rows = rows_of_request(model.tokenizer.encode)
    base, head = hf_model.base_model, hf_model.lm_head
    name = "layers" if family == "llama" else "h"
    blocks = getattr(base, name)

    def run(some_blocks, n_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        setattr(base, name, some_blocks)
        inputs = torch.randn((1, n_tokens, model.config.D), requires_grad=True)
        return inputs, base(inputs_embeds=inputs, use_cache=False).last_hidden_state

    with FlopCounterMode(display=False) as counter:
        for n_prefix, n_suffix, _ in rows:
            run(blocks[: LAYER + 1], n_prefix + n_suffix)
            run(blocks[LAYER + 1 :], n_prefix)
        for step in range(n_steps):
            for _, n_suffix, n_read in rows:
                inputs, hidden = run(blocks[LAYER + 1 :], n_suffix)
                logits = head(hidden[0, -n_read:])
                if step < n_steps - 1:
                    logits.sum().backward()
                    assert inputs.grad is not None
    request = jaxedit.Request(PROMPT, SUBJECT, TARGET)
    assert value_flops(model, request, TEMPLATES, LAYER, n_steps) == counted_flops(counter)
