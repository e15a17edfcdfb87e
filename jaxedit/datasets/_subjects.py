"""The subject in a prompt that is written out."""

from jaxedit.edits.request import to_template


def template_of(full_prompt: str, subject: str) -> str | None:
    """Return the prompt with `{}` for its subject; None where the subject does not occur in it.

    Raises:
      ValueError: on an empty subject.
    """
    if subject.strip() and subject not in full_prompt:
        return None
    return to_template(full_prompt, subject)
