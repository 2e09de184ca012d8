"""Drift of the outputs: how far a tuned model's next-token distribution π moved from the base model's, π₀.

    forward KL       KL(π₀ ‖ π) = Σ_v π₀(v) · (log π₀(v) − log π(v))    nats, on the base model's answers
    reverse KL       KL(π ‖ π₀) = Σ_v π(v) · (log π(v) − log π₀(v))     nats, on the tuned model's answers
    total variation  ½ Σ_v |π₀(v) − π(v)|                               0 … 1, on the answers of either

All are means over the tokens of all answers, as they were decoded; kl8 and kl32 over their first 8 and 32 tokens, which
decide what an answer becomes: a later token follows a text that the tuned model would perhaps never write. On a new
task forward KL predicted forgetting best (R² 0.96, against 0.93 of reverse KL and 0.80 of total variation, on
ParityMNIST; 0.71 for an LLM: arXiv 2509.04259, sections 4 and 6). arXiv 2510.18874 disputes it (Pearson 0.52). The
base model of an adapter is the same model with its adapter off, so no second model is loaded.

    sdft measure drift --adapter runs/mine/sdft
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor

from sdft.data.chat import Example, encode_example, encode_prompt
from sdft.errors import SdftError
from sdft.generation import Request, Sampling, stream
from sdft.generation.sampling import most_probable
from sdft.kernels.divergence import few_at_a_time
from sdft.measure.abilities import by_same_id
from sdft.measure.passes import ROWS, fitting, micro_batches, target_hidden
from sdft.measure.statistics import bootstrap_ratio, by_position
from sdft.model.batches import Batch
from sdft.model.llama import Llama
from sdft.model.lora import adapter_off, lora_layers
from sdft.results import AnswerDrift, AnswerLine, Difference, Drift
from sdft.tasks import Item, Suite, general_suite
from sdft.tokenizers.tokenizer import Tokenizer


class TokenDrift(TypedDict):
    """The drift at every token of one answer."""
    id: str
    kl: list[float]
    tv: list[float]
    top1: list[bool]            # whether both models have the same most probable token


@dataclass(frozen=True)
class BaseView:
    """The base model's hidden states on its own answers, kept to be compared with one tuned model after another."""

    answers: list[Example]
    hidden: list[Tensor]            # one per micro-batch: the last hidden states (n, D) at the target positions
    head: Tensor                    # (V, D)


def measure_drift(model: Llama, tokenizer: Tokenizer, prompts: Sequence[str] | None = None, base: Llama | None = None,
                  max_new_tokens: int = 128, chat: str | None = None) -> Drift:
    """How far `model` drifted on the base model's greedy answers to `prompts` (default: 16 general ones).

    The base model is `base`, or `model` with its adapter off. `kl` is the forward KL. Raises SdftError where there is
    neither a base model nor an adapter, and where all answers are empty.
    """
    if base is None and not lora_layers(model):
        raise SdftError("measure_drift: expected a model with an adapter, got one without; load an adapter, or pass "
                        "the base model as base=")
    if prompts is None:
        prompts = [item.messages[-1]["content"] for item in general_suite().items[:16]]
    items = [Item(str(index), [{"role": "user", "content": prompt}]) for index, prompt in enumerate(prompts)]
    requests = [Request(item.id, encode_prompt(tokenizer, item.messages, chat=chat)) for item in items]
    with adapter_off(base or model) as answering:
        lines: list[AnswerLine] = [
            {"id": output.id, "kind": "", "prompt": prompts[int(output.id)], "output": output.text,
             "tokens": len(output.tokens), "finish": output.finish, "score": None}
            for output in stream(answering, tokenizer, requests, Sampling(max_new_tokens=max_new_tokens))]
    answers = base_answers(tokenizer, Suite("prompts", items, None, "", max_new_tokens), lines, chat)
    if not answers:
        raise SdftError(f"measure_drift: expected answers of the base model, but all {len(items)} are empty; give "
                        "other prompts")
    return drift(model, base_view(base or model, answers))


def base_answers(tokenizer: Tokenizer, suite: Suite, lines: Sequence[AnswerLine],
                 chat: str | None = None) -> list[Example]:
    """A model's own answers to `suite` (lines of `evaluate`) as examples whose targets are the tokens that it chose.

    The end of the text is a target where the model ended it, and not where the answer was cut. Empty answers are
    skipped. The tokens come from encoding the text again.
    """
    messages = {item.id: item.messages for item in suite.items}
    examples = []
    for line in lines:
        if not line["output"]:
            continue
        answer = {"role": "assistant", "content": line["output"]}
        example = encode_example(tokenizer, [*messages[line["id"]], answer], line["id"], chat)
        if line["finish"] != "stop":
            end = max(index for index, is_target in enumerate(example.mask) if is_target)
            example = replace(example, mask=[target and index != end for index, target in enumerate(example.mask)])
        examples.append(example)
    return examples


@torch.inference_mode()
def base_view(model: Llama, answers: Sequence[Example], desc: str = "drift, base") -> BaseView:
    """The base model's hidden states on `answers`; an adapter on `model` is switched off meanwhile."""
    kept = fitting(model, answers, desc)
    with adapter_off(model):
        return BaseView(kept, [target_hidden(model, batch) for batch in micro_batches(model, kept, desc)],
                        model.head_weight)


def drift(model: Llama, base: BaseView, desc: str = "drift") -> Drift:
    """The forward drift of `model` on the base model's answers."""
    return _summary(token_drift(model, base, desc))


def drift_difference(answers: Sequence[AnswerDrift], references: Sequence[AnswerDrift],
                     of: Literal["kl", "kl8"] = "kl") -> Difference:
    """The KL of one model − that of another on the same base answers (`answers` of two drifts), per token."""
    first, second = by_same_id(answers, references)         # paired: two models tend to drift on the same answers
    counts = [min(8, answer["tokens"]) if of == "kl8" else answer["tokens"] for answer in first]
    sums = [(a[of] - b[of]) * n for a, b, n in zip(first, second, counts, strict=True)]
    difference, low, high = bootstrap_ratio(sums, counts)
    return {"difference": difference, "low": low, "high": high, "n": len(sums)}


@torch.inference_mode()
def reverse_drift(model: Llama, answers: Sequence[Example], base: Llama | None = None,
                  desc: str = "reverse drift") -> Drift:
    """The drift on answers that `model` itself wrote, with `kl` the reverse KL; n = 0 without answers."""
    drifts: list[TokenDrift] = []
    for batch in micro_batches(model, fitting(model, answers, desc) if answers else [], desc):
        x = target_hidden(model, batch)                                             # (n, D)
        with adapter_off(base or model) as before:
            drifts += _compared(batch, x, model.head_weight, target_hidden(before, batch), before.head_weight)
    return _summary(drifts) if drifts else {"tokens": 0, "n": 0}


def _summary(answers: Sequence[TokenDrift]) -> Drift:
    counts = [len(answer["kl"]) for answer in answers]
    kl, kl_low, kl_high = bootstrap_ratio([math.fsum(answer["kl"]) for answer in answers], counts)
    (kl8, kl8_low, kl8_high), (kl32, kl32_low, kl32_high) = (
        bootstrap_ratio([math.fsum(answer["kl"][:k]) for answer in answers], [min(k, count) for count in counts])
        for k in (8, 32))
    tv, tv_low, tv_high = bootstrap_ratio([math.fsum(answer["tv"]) for answer in answers], counts)
    return {"kl": kl, "kl_low": kl_low, "kl_high": kl_high,
            "kl8": kl8, "kl8_low": kl8_low, "kl8_high": kl8_high,
            "kl32": kl32, "kl32_low": kl32_low, "kl32_high": kl32_high, "tv": tv, "tv_low": tv_low, "tv_high": tv_high,
            "top1": sum(sum(answer["top1"]) for answer in answers) / sum(counts),
            "by_position": by_position([answer["kl"] for answer in answers], "kl"),
            "tokens": sum(counts), "n": len(answers),
            "answers": [{"id": answer["id"], "kl": fmean(answer["kl"]), "kl8": fmean(answer["kl"][:8]),
                         "kl32": fmean(answer["kl"][:32]), "tokens": len(answer["kl"])} for answer in answers]}


@torch.inference_mode()
def token_drift(model: Llama, base: BaseView, desc: str = "drift") -> list[TokenDrift]:
    """The forward drift at every token, answer by answer."""
    return [answer for x_base, batch in zip(base.hidden, micro_batches(model, base.answers, desc), strict=True)
            for answer in _compared(batch, x_base, base.head, target_hidden(model, batch), model.head_weight)]


def _compared(batch: Batch, x_p: Tensor, head_p: Tensor, x_q: Tensor, head_q: Tensor) -> list[TokenDrift]:
    """`compare` p with q at every target of the batch, from hidden states (n, D) and heads (V, D)."""
    parts = [few_at_a_time(compare, F.linear(p, head_p), F.linear(q, head_q))
             for p, q in zip(x_p.split(ROWS), x_q.split(ROWS), strict=True)]
    columns = (torch.cat(part).split(batch.counts) for part in zip(*parts, strict=True))
    return [{"id": id, "kl": kl.tolist(), "tv": tv.tolist(), "top1": same.tolist()}
            for id, kl, tv, same in zip(batch.ids, *columns, strict=True)]


def compare(p_logits: Tensor, q_logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """KL(p ‖ q) in nats, total variation, and whether the top tokens are equal, each (n,); from logits (n, V)."""
    log_p, log_q = p_logits.float().log_softmax(-1), q_logits.float().log_softmax(-1)
    p = log_p.exp()
    kl = (p * (log_p - log_q)).sum(-1)
    tv = (p - log_q.exp()).abs().sum(-1) / 2
    return kl.clamp_min(0), tv, most_probable(p_logits) == most_probable(q_logits)
