"""Ready commands: those that can work for the family, the base and the rank, and no others."""

import ast
import shlex
from pathlib import Path

import pytest

import jaxedit
from jaxedit import Request
from jaxedit.exports.hf_base import HFBase
from jaxedit.exports.ready_commands import ready_commands
from jaxedit.exports.written import WrittenWeight
from jaxedit.models.model import with_bos
from jaxedit.study.edited import EditedModel

HUB = HFBase("owner/base", "1234abcd", True, None)
LOCAL = HFBase("/models/it's mine", None, False, None)
GGUF = HFBase(None, None, False, Path("/models/tiny q4.gguf"))


@pytest.fixture
def edited(golden):
    """Make a function: family -> a golden model with one fact that holds a quote."""

    def make(family: str, model: jaxedit.Model | None = None) -> EditedModel:
        request = Request("{}'s owner is", "BP", "Munich")
        return EditedModel(model or golden(family), "source", {}, (), (request,), None, "")

    return make


def commands(edited, format="peft", base=HUB, rank=3, files=()) -> dict[str, str]:
    """Program -> its command."""
    weights = [WrittenWeight("w", 3, 1, 0.0), WrittenWeight("w", 4, rank, 0.0)]
    found = ready_commands(edited, format, "out dir", base, weights, files)
    for command in found:
        if command.language == "python":
            ast.parse(command.text)
        if command.language == "bash":
            shlex.split(command.text)
    return {command.program: command.text for command in found}


def test_peft_names_base_revision_and_folder(edited):
    text = commands(edited("llama"))["transformers + peft"]
    assert "AutoModelForCausalLM.from_pretrained('owner/base', revision='1234abcd')" in text
    assert "PeftModel.from_pretrained(model, 'out dir')" in text
    assert 'tokenizer("BP\'s owner is", add_special_tokens=False' in text
    local = commands(edited("llama"), base=LOCAL)["transformers + peft"]
    assert 'from_pretrained("/models/it\'s mine")' in local


@pytest.mark.parametrize(
    ("rank", "highest"), [(1, 1), (2, 8), (8, 8), (9, 16), (257, 320), (321, 512), (512, 512)]
)
def test_vllm_is_given_the_smallest_rank_that_fits(edited, rank, highest):
    words = shlex.split(commands(edited("llama"), rank=rank)["vLLM"])
    assert words[:4] == ["vllm", "serve", "owner/base", "--revision=1234abcd"]
    assert words[4:6] == ["--enable-lora", f"--max-lora-rank={highest}"]
    assert words[6:] == ["--lora-modules", "edited=out dir"]


@pytest.mark.parametrize("family", ["gpt2", "gptj", "gpt_neox"])
def test_vllm_serves_no_adapters_of_some_families(edited, family):
    expected = f"vLLM serves no LoRA adapters for {family}: use --format=hf"
    assert commands(edited(family))["vLLM"] == expected
    assert shlex.split(commands(edited(family), "hf")["vLLM"]) == ["vllm", "serve", "out dir"]


def test_vllm_serves_no_adapters_of_a_higher_rank(edited):
    assert commands(edited("qwen2"), rank=513)["vLLM"].endswith("use --format=hf")


def test_llama_cpp_is_given_the_file_that_was_edited(edited):
    words = shlex.split(commands(edited("llama"), "gguf-lora", GGUF, files=["a.gguf"])["llama.cpp"])
    assert words[:3] == ["llama-completion", "-m", "/models/tiny q4.gguf"]
    assert words[3:5] == ["--lora", "out dir/a.gguf"]
    assert words[-2:] == ["-p", "BP's owner is"]


@pytest.mark.parametrize(("base", "start"), [(HUB, "--remote owner/base"), (LOCAL, "'/models/it'")])
def test_llama_cpp_is_given_an_hf_base_as_a_file(edited, base, start):
    text = commands(edited("llama"), "gguf-lora", base, files=["a.gguf"])["llama.cpp"]
    convert, ask = text.splitlines()
    assert convert.startswith(f"python llama.cpp/convert_hf_to_gguf.py {start}")
    assert convert.endswith(" --outfile base.gguf")
    assert ask.startswith("llama-completion -m base.gguf --lora 'out dir/a.gguf'")


def test_a_begin_of_text_token_is_part_of_the_prompt(edited, golden):
    """But not for llama.cpp, where a model that has it by itself gets it by itself."""
    model = with_bos(golden("llama"))
    token = model.tokenizer.decode([model.tokenizer.bos_id])
    for format in ("peft", "delta", "hf"):
        text = next(iter(commands(edited("llama", model), format).values()))
        assert f'tokenizer("{token}BP\'s owner is"' in text
    asked = commands(edited("llama", model), "gguf-lora", GGUF, files=["a.gguf"])["llama.cpp"]
    assert shlex.split(asked)[-1] == "BP's owner is"
