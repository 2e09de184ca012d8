"""Drift of the outputs: how far a tuned model's next-token distribution has moved from the seed's.

    KL(π₀ ‖ π) = Σ_v π₀(v) · (log π₀(v) − log π(v))      nats, at every token of answers y ~ π₀ of the seed

averaged over the tokens of all answers. On general prompts it is what best predicts forgetting (arXiv 2509.04259). The
seed is the same model with its adapter off, so no second model is loaded.

    from sdft.measure.drift import drift, seed_answers
    print(drift(model, seed_answers(tokenizer, suite, seed_rows))["kl"])
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sdft.errors import SdftError
from sdft.measure.gap import ROWS, packed, target_counts, target_hidden
from sdft.measure.statistics import bootstrap_ratio
from sdft.model.llama import Llama
from sdft.model.lora import adapter_off, lora_layers
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


def drift(model: Llama, answers: Sequence[Example], seed: Llama | None = None, desc: str = "drift") -> dict[str, Any]:
    """The drift of `model` from its seed on answers of the seed's.

    kl, kl_low, kl_high: forward KL in nats per token, with its 95 % bootstrap interval over the answers; top1: the
    share of tokens where both have the same most probable one; tokens, n: how many tokens, of how many answers. seed:
    the seed model, where it is not `model` with its adapter off (full fine-tuning).
    """
    rows = token_drift(model, answers, seed, desc)
    tokens = [row["tokens"] for row in rows]
    kl, low, high = bootstrap_ratio([row["kl"] * row["tokens"] for row in rows], tokens)
    top1 = sum(row["top1"] * row["tokens"] for row in rows) / sum(tokens)
    return {"kl": kl, "kl_low": low, "kl_high": high, "top1": top1, "tokens": sum(tokens), "n": len(rows)}


@torch.inference_mode()
def token_drift(model: Llama, answers: Sequence[Example], seed: Llama | None = None,
                desc: str = "drift") -> list[dict[str, Any]]:
    """The drift on every answer by itself: id, kl (nats per token), top1 (a share), tokens."""
    if seed is None and not lora_layers(model):
        raise SdftError("drift compares with the seed, which is the model with its adapter off; load an adapter, or "
                        "give the seed model")
    rows = []
    for batch in packed(model, answers, desc):
        x = target_hidden(model, batch)                                             # (n, D)
        if seed is None:
            with adapter_off(model):
                x_seed, head_seed = target_hidden(model, batch), model.head
        else:
            x_seed, head_seed = target_hidden(seed, batch), seed.head
        parts = [compare(head_seed(before), model.head(after))
                 for before, after in zip(x_seed.split(ROWS), x.split(ROWS), strict=True)]
        counts = target_counts(batch)
        kl, same = (torch.cat(part).split(counts) for part in zip(*parts, strict=True))
        for id, own_kl, own_same, count in zip(batch.ids, kl, same, counts, strict=True):
            rows.append({"id": id, "kl": own_kl.double().mean().item(), "top1": own_same.double().mean().item(),
                         "tokens": count})
    return rows


def compare(seed_logits: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """KL(seed ‖ tuned) in nats, fp32 (n,), and whether both have the same most probable token (n,); logits (n, V)."""
    before, after = seed_logits.float().log_softmax(-1), logits.float().log_softmax(-1)
    kl = (before.exp() * (before - after)).sum(-1)
    return kl.clamp_min(0), before.argmax(-1) == after.argmax(-1)
