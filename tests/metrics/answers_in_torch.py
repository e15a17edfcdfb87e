"""Answers rated by a plain loop over an HF model in torch."""

from typing import NamedTuple

import torch
import transformers


class Rating(NamedTuple):
    """How torch rates an answer: mean loss a token, its tokens, and which greedy decoding says."""

    q: float
    n: int
    is_reproduced: bool
    token_accuracy: float


class Torch(NamedTuple):
    """An HF model in torch, asked one text at a time."""

    model: transformers.PreTrainedModel
    tokenizer: transformers.PreTrainedTokenizerBase
    front: list[int]  # put before every text

    def log_probs(self, tokens: list[int]) -> torch.Tensor:
        """Return those of the token after each one, [T, V]."""
        with torch.no_grad():
            return torch.log_softmax(self.model(torch.tensor([tokens])).logits[0].double(), -1)

    def rate(self, prompt: str, answer: str) -> Rating:
        """Rate an answer after a prompt."""
        before = self.front + self.tokenizer(prompt).input_ids
        joint = self.front + self.tokenizer(f"{prompt} {answer}").input_ids
        assert joint[: len(before)] == before
        assert self.tokenizer.decode(joint[len(before) :]) == f" {answer}"
        log_probs = self.log_probs(joint)
        answer_at = range(len(before), len(joint))
        losses = [-float(log_probs[t - 1, joint[t]]) for t in answer_at]
        hits = [int(log_probs[t - 1].argmax()) == joint[t] for t in answer_at]
        n = len(losses)
        return Rating(sum(losses) / n, n, all(hits), sum(hits) / n)

    def greedy(self, prompt: str) -> dict[int, str]:
        """Continue a prompt by 1 to 3 tokens, where these are " word..." and no others would be.

        Returns:
          The number of tokens -> the answer that they are.
        """
        before = self.front + self.tokenizer(prompt).input_ids
        tokens, answers = list(before), {}
        for n in (1, 2, 3):
            tokens.append(int(self.log_probs(tokens)[-1].argmax()))
            text = self.tokenizer.decode(tokens[len(before) :])
            answer = text.strip()
            again = self.front + self.tokenizer(prompt + text).input_ids
            if answer and text == f" {answer}" and again == tokens:
                answers[n] = answer
        return answers
