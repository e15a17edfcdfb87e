"""What a model says as text: tokens without the special ones."""

from jaxedit.models.tokenizer import Tokenizer


def decode_continuation(tokenizer: Tokenizer, tokens: list[int], new: list[int]) -> str:
    """Return the text of new tokens behind those of a prompt, without special tokens.

    It begins with a space where the first new word does, which some tokenizers only show behind
    another word.
    """
    prompt = tokenizer.decode(tokens, skip_special=True)
    whole = tokenizer.decode([*tokens, *new], skip_special=True)
    if not whole.startswith(prompt):
        return tokenizer.decode(new, skip_special=True)
    return whole.removeprefix(prompt)


def strip_special(tokenizer: Tokenizer, text: str) -> str:
    """Take out of a text what would be read as special tokens."""
    written = [tokenizer.backend.id_to_token(i) for i in tokenizer.special_ids]
    while found := [token for token in written if token and token in text]:
        text = text.replace(max(found, key=len), "")
    return text
