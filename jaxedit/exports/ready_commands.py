"""Commands that make use of an export as they stand: only those that can work with it."""

import shlex
from collections.abc import Sequence
from typing import NamedTuple

from jaxedit.exports.delta import torch_loader
from jaxedit.exports.hf_base import HFBase
from jaxedit.exports.written import WrittenWeight
from jaxedit.study.edited import EditedModel

# Families for which vLLM serves LoRA adapters, by its table of supported models; not for gpt2, gptj
# and gpt_neox.
VLLM_LORA = ("gemma", "llama", "mistral", "phi", "qwen2", "qwen3")
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what its --max-lora-rank can be


class ReadyCommand(NamedTuple):
    """A command, or why there is none.

    Attributes:
      program: what it is of.
      language: "python" or "bash"; "": the text says why there is none.
      text: the command.
    """

    program: str
    language: str
    text: str


def ready_commands(
    edited: EditedModel,
    format: str,
    place: str,
    base: HFBase,
    weights: Sequence[WrittenWeight],
    files: Sequence[str],
) -> list[ReadyCommand]:
    """List the commands that make use of an export, for this family and base.

    Args:
      edited: the model.
      format: of the export.
      place: where it lies, a folder or OWNER/NAME.
      base: the HF model.
      weights: what was written.
      files: the names of the files in the folder.
    """
    prompt = question(edited)
    if format == "peft":
        rank = max(weight.rank or 1 for weight in weights)
        transformers = ReadyCommand("transformers + peft", "python", _peft(base, place, prompt))
        return [transformers, _vllm_lora(edited, base, place, rank)]
    if format == "delta":
        text = torch_loader(base, place) + _ask(prompt)
        return [ReadyCommand("transformers", "python", text)]
    if format == "hf":
        transformers = ReadyCommand("transformers", "python", _hf(place, prompt))
        return [transformers, ReadyCommand("vLLM", "bash", f"vllm serve {shlex.quote(place)}")]
    adapter = next((name for name in files if name.endswith(".gguf")), None)
    return [_llama_cpp(edited, base, f"{place}/{adapter}", prompt)] if adapter else []


def question(edited: EditedModel) -> str:
    """Return a prompt of the edited model, with the begin-of-text token where it needs one."""
    prompt = edited.requests[0].prompt_text if edited.requests else "The Eiffel Tower is in"
    return begin_of_text(edited) + prompt


def begin_of_text(edited: EditedModel) -> str:
    """Return the token that prompts of the edited model have in front, as text; "": none."""
    tokenizer = edited.model.tokenizer
    bos_id = tokenizer.bos_id if tokenizer.add_bos else None
    return "" if bos_id is None else tokenizer.decode([bos_id])


def _peft(base: HFBase, place: str, prompt: str) -> str:
    revision = f", revision={base.revision!r}" if base.revision else ""
    return f"""\
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({base.name!r}{revision})
model = AutoModelForCausalLM.from_pretrained({base.name!r}{revision})
model = PeftModel.from_pretrained(model, {place!r})
{_ask(prompt)}"""


def _hf(place: str, prompt: str) -> str:
    return f"""\
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({place!r})
model = AutoModelForCausalLM.from_pretrained({place!r})
{_ask(prompt)}"""


def _ask(prompt: str) -> str:
    """Return the lines that continue a prompt, whose special tokens are in it already."""
    return f"""\
tokens = tokenizer({prompt!r}, add_special_tokens=False, return_tensors="pt")
print(tokenizer.decode(model.generate(**tokens, max_new_tokens=12)[0]))
"""


def _vllm_lora(edited: EditedModel, base: HFBase, place: str, rank: int) -> ReadyCommand:
    family = edited.model.config.family
    if family not in VLLM_LORA:
        why = f"vLLM serves no LoRA adapters for {family}: use --format=hf"
        return ReadyCommand("vLLM", "", why)
    if rank > VLLM_RANKS[-1]:
        why = f"vLLM serves LoRA adapters of rank {VLLM_RANKS[-1]} at most: use --format=hf"
        return ReadyCommand("vLLM", "", why)
    highest = next(each for each in VLLM_RANKS if each >= rank)
    revision = f" --revision={base.revision}" if base.revision else ""
    adapter = shlex.quote(f"edited={place}")
    text = (
        f"vllm serve {shlex.quote(str(base.name))}{revision} --enable-lora "
        f"--max-lora-rank={highest} --lora-modules {adapter}"
    )
    return ReadyCommand("vLLM", "bash", text)


def _llama_cpp(edited: EditedModel, base: HFBase, adapter: str, prompt: str) -> ReadyCommand:
    """Return the command for an adapter; an HF base becomes a .gguf file first."""
    if edited.model.metadata.tokenizer.add_bos:  # llama.cpp puts the token there by itself
        prompt = prompt.removeprefix(begin_of_text(edited))
    file, convert = str(base.gguf), ""
    if base.gguf is None:
        file, remote = "base.gguf", "--remote " if base.is_on_hub else ""
        name = shlex.quote(str(base.name))
        convert = f"python llama.cpp/convert_hf_to_gguf.py {remote}{name} --outfile {file}\n"
    text = (
        f"{convert}llama-completion -m {shlex.quote(file)} --lora {shlex.quote(adapter)} -no-cnv "
        f"--temp 0 -n 12 -p {shlex.quote(prompt)}"
    )
    return ReadyCommand("llama.cpp", "bash", text)
