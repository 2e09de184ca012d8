"""Is it gone? How few steps on the base model's own dialogues bring back what an arm forgot.

    for k = 1, 3, 10, 30      the arm again
      train on the base model's answers to the first k general prompts: cross-entropy, constant learning rate
      after 1, 2, 4, …, 64 steps: F of `elaborate`, until F < 10 %

An ability that returns after a few steps on unrelated dialogues was not lost: the arm had only learned not to show it
(spurious forgetting, arXiv 2501.13453). F is the share of the items that the arm does not solve, among the first ITEMS
items that the base model solves. Training on so few dialogues also forgets by itself, so F can rise again: compare the
checks of several arms, and do not read a null as knowledge that is gone.

    sdft measure recovery --adapter runs/mine/sft --out runs/mine/eval/base
"""
from __future__ import annotations

import copy
import math
import sys
from collections.abc import Sequence

import torch

from sdft.data.chat import Example
from sdft.experiment.context import Context, solved_by
from sdft.generation import Sampling
from sdft.measure.abilities import evaluate
from sdft.measure.forgetting import solved
from sdft.model.batches import may_share, pack_within
from sdft.model.llama import Llama
from sdft.model.lora import lora_layers
from sdft.objectives.hidden_states import cross_entropy
from sdft.results import Recovery, RecoveryCheck
from sdft.tasks import Suite
from sdft.tokenizers.tokenizer import Tokenizer
from sdft.train.loop import gradient
from sdft.train.optimiser import adamw
from sdft.train.order import step_examples
from sdft.train.settings import TrainSettings
from sdft.train.weights import Adapter, FullWeights

DIALOGUES = (1, 3, 10, 30)                  # k
CHECKS = (1, 2, 4, 8, 16, 32, 64)           # steps
GOAL = 0.1                                  # F below this is recovered
ITEMS = 48                                  # one generation at a time answers them all; 4 lost items are below GOAL


def recovery(model: Llama, tokenizer: Tokenizer, suite: Suite, dialogues: Sequence[Example],
             sampling: Sampling = Sampling(), batch_size: int = 32, chat: str | None = None, name: str = "arm"
             ) -> Recovery:
    """Train `model` further on the first k of `dialogues`, for every k, until it solves the items of `suite` again.

    suite: items that the base model solves, at least one. dialogues: the base model's own answers; a k beyond their
    number is left out. The step is 0 where F is below 10 % already. The model is unchanged when this returns.
    """
    def forgetting() -> float:
        lines = evaluate(model, tokenizer, [suite], None, sampling, batch_size, chat)[suite.name]
        return 1 - len(solved(lines)) / len(suite.items)

    adapted = bool(lora_layers(model))
    model = model if adapted else copy.deepcopy(model)              # of all weights, training needs a copy anyway
    weights = Adapter(model) if adapted else FullWeights(model)
    arm = {name: parameter.detach().clone() for name, parameter in weights.parameters.items()}
    result: Recovery = {"forgetting": forgetting(), "n": len(suite.items), "steps": {}, "checks": []}
    try:
        for k in (k for k in DIALOGUES if k <= len(dialogues)):
            _restore(weights, arm)
            checks = [RecoveryCheck(k=k, step=0, forgetting=result["forgetting"])]
            train = _Training(model, weights, dialogues[:k])
            for step in CHECKS:
                if checks[-1]["forgetting"] < GOAL:
                    break
                train.until(step)
                checks.append({"k": k, "step": step, "forgetting": forgetting()})
                print(f"recovery, {name}, k = {k}: F {checks[-1]['forgetting']:.0%} after step {step}", file=sys.stderr)
            last = checks[-1]
            result["steps"][f"k{k}"] = last["step"] if last["forgetting"] < GOAL else None
            result["checks"] += checks[1:]
    finally:
        _restore(weights, arm)
    return result


def recovery_of(context: Context, arm: str, model: Llama) -> Recovery | None:
    """The recovery of an arm of a run; None where the base model solves no item of `elaborate`."""
    suite = next(suite for suite in context.suites if suite.name == "elaborate")
    suite = solved_by(context.answers["base"][suite.name], suite, ITEMS)
    if not suite.items:
        print(f"recovery, {arm}: not measured, since the base model solves no item of elaborate", file=sys.stderr)
        return None
    return recovery(model, context.tokenizer, suite, context.base_view.answers, context.sampling, context.batch_size,
                    context.chat, arm)


class _Training:
    """Plain cross-entropy on few dialogues, step by step, with the default learning rate; without dropout."""

    def __init__(self, model: Llama, weights: Adapter | FullWeights, dialogues: Sequence[Example]):
        self.model, self.weights, self.dialogues, self.step = model, weights, dialogues, 0
        self.settings = TrainSettings(schedule="constant").resolved(model.device)
        self.optimiser = adamw(weights.parameters, self.settings)

    def until(self, step: int) -> None:
        """Train until `step` steps are done in all."""
        settings, device = self.settings, self.model.device
        for done in range(self.step, step):
            chosen = step_examples(self.dialogues, done, settings.batch_size, settings.seed)
            gradient(self.model, pack_within(chosen, settings.micro_tokens, may_share(device)), cross_entropy)
            torch.nn.utils.clip_grad_norm_(self.weights.parameters.values(), settings.max_grad_norm or math.inf)
            self.optimiser.step()
            self.optimiser.zero_grad()
            self.weights.publish()
        self.step = step


@torch.no_grad()
def _restore(weights: Adapter | FullWeights, arm: dict[str, torch.Tensor]) -> None:
    for name, parameter in weights.parameters.items():
        parameter.copy_(arm[name])
        parameter.grad = None
    weights.publish()
