"""The subject in a prompt that is written out."""

from jaxedit.edits.subjects import find_subject, to_template


def template_of(full_prompt: str, subject: str) -> str | None:
    """Return the prompt with `{}` for its subject; None where it does not occur as a word.

    A prompt that has `{}` in the subject's place already is returned as it is.

    Raises:
      ValueError: on an empty subject.
    """
    subject = subject.strip()
    if subject and find_subject(full_prompt, subject) is None:
        return full_prompt if full_prompt.count("{}") == 1 else None
    return to_template(full_prompt, subject)
