"""Drift of the outputs: how far a tuned model's next-token distribution has moved from the seed's.

    KL(π₀ ‖ π) = Σ_v π₀(v) · (log π₀(v) − log π(v))      nats, at every token of answers y ~ π₀ of the seed

averaged over the tokens of all answers. On general prompts it is what best predicts forgetting (arXiv 2509.04259). The
seed is the same model with its adapter off, so no second model is loaded; what it makes of the answers is computed
once.

    from sdft.measure.drift import drift, seed_answers, seed_view
    print(drift(model, seed_view(model, seed_answers(tokenizer, suite, seed_rows)))["kl"])
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sdft.measure.gap import ROWS, fitting, packed, target_hidden
from sdft.measure.places import by_place
from sdft.measure.statistics import bootstrap_ratio
from sdft.model.llama import Llama
from sdft.model.lora import adapter_off
from sdft.tasks.base import Suite
from sdft.text.chat import Example, encode_example


def seed_answers(tokenizer, suite: Suite, rows: Sequence[dict[str, Any]], chat: str | None = None) -> list[Example]:
    """The seed's own answers (lines of `evaluate`) as examples whose targets are the tokens that the seed chose.

    That includes the end of the text where the seed ended it, and not where the answer was cut. Empty answers are left
    out. The tokens are those of the text encoded anew.
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
class SeedView:
    """What the seed makes of its own answers, kept to be set against one tuned model after another."""

    answers: list[Example]
    hidden: list[Tensor]            # the last hidden states (n, D) of the target rows, pack by pack
    head: Tensor                    # (V, D), which makes logits of them


@torch.inference_mode()
def seed_view(model: Llama, answers: Sequence[Example], desc: str = "drift, seed") -> SeedView:
    """The seed's view of its answers; `model` is the seed, under an adapter or not."""
    kept = fitting(model, answers, desc)
    with adapter_off(model):
        return SeedView(kept, [target_hidden(model, batch) for batch in packed(model, kept, desc)], model.head_weight)


def drift(model: Llama, seed: SeedView, desc: str = "drift") -> dict[str, Any]:
    """The drift of `model` from its seed on answers of the seed's.

    kl, kl_low, kl_high: forward KL in nats per token, with its 95 % bootstrap interval over the answers; top1: the
    share of tokens where both have the same most probable one; by_position: the KL by place in the answer, as {first,
    last, kl, tokens} with places counted from 1; tokens, n: how many tokens, of how many answers.
    """
    rows = token_drift(model, seed, desc)
    counts = [len(row["kl"]) for row in rows]
    kl, low, high = bootstrap_ratio([math.fsum(row["kl"]) for row in rows], counts)
    top1 = sum(sum(row["top1"]) for row in rows) / sum(counts)
    return {"kl": kl, "kl_low": low, "kl_high": high, "top1": top1,
            "by_position": by_place([row["kl"] for row in rows], "kl"), "tokens": sum(counts), "n": len(rows)}


@torch.inference_mode()
def token_drift(model: Llama, seed: SeedView, desc: str = "drift") -> list[dict[str, Any]]:
    """The drift at every token, answer by answer: id, kl (nats), top1 (whether both have the same likeliest token)."""
    rows = []
    for x_seed, batch in zip(seed.hidden, packed(model, seed.answers, desc), strict=True):
        x = target_hidden(model, batch)                                             # (n, D)
        parts = [compare(F.linear(before, seed.head), model.head(after))
                 for before, after in zip(x_seed.split(ROWS), x.split(ROWS), strict=True)]
        kl, same = (torch.cat(part).split(batch.counts) for part in zip(*parts, strict=True))
        rows += [{"id": id, "kl": own_kl.tolist(), "top1": own_same.tolist()}
                 for id, own_kl, own_same in zip(batch.ids, kl, same, strict=True)]
    return rows


def compare(seed_logits: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """KL(seed ‖ tuned) in nats, fp32 (n,), and whether both have the same most probable token (n,); logits (n, V)."""
    before, after = seed_logits.float().log_softmax(-1), logits.float().log_softmax(-1)
    kl = (before.exp() * (before - after)).sum(-1)
    return kl.clamp_min(0), before.argmax(-1) == after.argmax(-1)
