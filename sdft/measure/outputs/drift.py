"""Drift of the outputs: how far a tuned model's next-token distribution π has moved from the seed's, π₀.

    forward KL       KL(π₀ ‖ π) = Σ_v π₀(v) · (log π₀(v) − log π(v))      nats, at every token of answers of the seed
    reverse KL       KL(π ‖ π₀) = Σ_v π(v) · (log π(v) − log π₀(v))       nats, at every token of answers of the arm
    total variation  ½ Σ_v |π₀(v) − π(v)|                                 0 … 1, on the answers of either

averaged over the tokens of all answers as they are decoded (greedily, unless the settings say otherwise), on general
prompts or on the task's own. On the new task the forward KL best predicted forgetting, before reverse KL and total
variation (R² 0.96, 0.93 and 0.80 on ParityMNIST, 0.71 of the forward KL for an LLM: arXiv 2509.04259, sections 4
and 6; disputed by arXiv 2510.18874, Pearson 0.52). The seed of an adapter is the same model with its adapter off, so
no second model is loaded; what it makes of its own answers is computed once.

    sdft measure drift --adapter runs/mine/sdft
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sdft.data.chat import Example, encode_example
from sdft.generation.sampling import most_probable
from sdft.kernels.divergence import few_at_a_time
from sdft.measure.abilities import joined
from sdft.measure.passes import ROWS, fitting, packed, target_hidden
from sdft.measure.positions import by_position
from sdft.measure.statistics import bootstrap_ratio
from sdft.model.batches import Batch
from sdft.model.llama import Llama
from sdft.model.lora import adapter_off
from sdft.tasks.base import Suite


def base_answers(tokenizer, suite: Suite, rows: Sequence[dict[str, Any]], chat: str | None = None) -> list[Example]:
    """A model's own answers (lines of `evaluate`) as examples whose targets are the tokens that it chose.

    That includes the end of the text where the model ended it, and not where the answer was cut. Empty answers are left
    out. The tokens are those of the text encoded anew. The rows are the seed's for `base_view`, and those of a tuned
    model for `reverse_drift`; `suite` is what they answer: general prompts or the task's.
    """
    messages = {item.id: item.messages for item in suite.items}
    examples = []
    for row in rows:
        if not row["output"]:
            continue
        answer = {"role": "assistant", "content": row["output"]}
        example = encode_example(tokenizer, [*messages[row["id"]], answer], row["id"], chat)
        examples.append(example if row["finish"] == "stop" else _without_end(example))
    return examples


def _without_end(example: Example) -> Example:
    last = max(index for index, learned in enumerate(example.mask) if learned)
    return replace(example, mask=[learned and index != last for index, learned in enumerate(example.mask)])


@dataclass(frozen=True)
class BaseView:
    """What the seed makes of its own answers, kept to be set against one tuned model after another."""

    answers: list[Example]
    hidden: list[Tensor]            # the last hidden states (n, D) of the target rows, pack by pack
    head: Tensor                    # (V, D), which makes logits of them


@torch.inference_mode()
def base_view(model: Llama, answers: Sequence[Example], desc: str = "drift, seed") -> BaseView:
    """The seed's view of its answers; `model` is the seed, under an adapter or not."""
    kept = fitting(model, answers, desc)
    with adapter_off(model):
        return BaseView(kept, [target_hidden(model, batch) for batch in packed(model, kept, desc)], model.head_weight)


def drift(model: Llama, base: BaseView, desc: str = "drift") -> dict[str, Any]:
    """The drift of `model` from its seed on answers of the seed's.

    kl, kl_low, kl_high: forward KL in nats per token, with its 95 % bootstrap interval over the answers; tv, tv_low,
    tv_high: total variation, likewise; top1: the share of tokens where both have the same most probable one;
    by_position: the KL by place in the answer, as {first, last, kl, tokens} with places counted from 1 (what training
    made likely at an answer's start, such as ending at once, shows there alone: the rest is given); tokens, n: how many
    tokens, of how many answers; answers: id, kl (the mean over its tokens) and tokens of each.
    """
    return _summary(token_drift(model, base, desc))


def drift_difference(own: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The KL of one model less that of another on the same answers of their seed (`answers` of `drift`).

    difference in nats per token over all tokens of the n answers, with its 95 % bootstrap interval over the answers
    (low, high): each is drawn with both its KLs, since an answer on which one model drifts is one where the other does.
    """
    first, second = joined(own, other)
    sums = [(a["kl"] - b["kl"]) * a["tokens"] for a, b in zip(first, second, strict=True)]
    found = bootstrap_ratio(sums, [answer["tokens"] for answer in first])
    return {**dict(zip(("difference", "low", "high"), found, strict=True)), "n": len(sums)}


def reverse_drift(model: Llama, answers: Sequence[Example], base: Llama | None = None,
                  desc: str = "reverse drift") -> dict[str, Any]:
    """The drift of `model` from its seed on answers that `model` itself wrote: as `drift`, with kl the reverse KL.

    `seed` is None where it is `model` with its adapter off. {tokens: 0, n: 0} where the model wrote nothing at all.
    """
    if not answers:
        return {"tokens": 0, "n": 0}
    return _summary(token_reverse_drift(model, answers, base, desc))


def _summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    counts = [len(row["kl"]) for row in rows]
    found: dict[str, Any] = {}
    for name in ("kl", "tv"):
        sums = [math.fsum(row[name]) for row in rows]
        found |= zip((name, f"{name}_low", f"{name}_high"), bootstrap_ratio(sums, counts), strict=True)
    return {**found, "top1": sum(sum(row["top1"]) for row in rows) / sum(counts),
            "by_position": by_position([row["kl"] for row in rows], "kl"), "tokens": sum(counts), "n": len(rows),
            "answers": [{"id": row["id"], "kl": math.fsum(row["kl"]) / len(row["kl"]), "tokens": len(row["kl"])}
                        for row in rows]}


@torch.inference_mode()
def token_drift(model: Llama, base: BaseView, desc: str = "drift") -> list[dict[str, Any]]:
    """The drift at every token, answer by answer: id, kl (nats), tv, top1 (whether both have the same likeliest)."""
    rows = []
    for x_base, batch in zip(base.hidden, packed(model, base.answers, desc), strict=True):
        rows += _compared(batch, x_base, base.head, target_hidden(model, batch), model.head_weight)
    return rows


@torch.inference_mode()
def token_reverse_drift(model: Llama, answers: Sequence[Example], base: Llama | None = None,
                        desc: str = "reverse drift") -> list[dict[str, Any]]:
    """The reverse drift at every token: as `token_drift`, from the tuned model to the seed."""
    rows = []
    for batch in packed(model, fitting(model, answers, desc), desc):
        x = target_hidden(model, batch)                                             # (n, D)
        with adapter_off(base or model) as other:
            rows += _compared(batch, x, model.head_weight, target_hidden(other, batch), other.head_weight)
    return rows


def _compared(batch: Batch, x_p: Tensor, head_p: Tensor, x_q: Tensor, head_q: Tensor) -> list[dict[str, Any]]:
    """`compare` of p and q at every target of the batch, of their hidden states (n, D) and heads (V, D)."""
    parts = [few_at_a_time(compare, F.linear(p, head_p), F.linear(q, head_q))
             for p, q in zip(x_p.split(ROWS), x_q.split(ROWS), strict=True)]
    columns = (torch.cat(part).split(batch.counts) for part in zip(*parts, strict=True))
    return [{"id": id, "kl": kl.tolist(), "tv": tv.tolist(), "top1": same.tolist()}
            for id, kl, tv, same in zip(batch.ids, *columns, strict=True)]


def compare(p_logits: Tensor, q_logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """KL(p ‖ q) in nats and total variation, fp32 (n,), and whether both have the same most probable token (n,).

    Of logits (n, V).
    """
    log_p, log_q = p_logits.float().log_softmax(-1), q_logits.float().log_softmax(-1)
    p = log_p.exp()
    kl = (p * (log_p - log_q)).sum(-1)
    tv = (p - log_q.exp()).abs().sum(-1) / 2
    return kl.clamp_min(0), tv, most_probable(p_logits) == most_probable(q_logits)
