"""The arms of a run: plain fine-tuning (sft), self-distillation (sdft), and baselines that explain or rival it.

An arm is a set of targets, training settings, and what follows the training; all arms go through the same loop.
"As sft" means: the data's own answers and the run's settings, except for the stated difference.

    self-output        the base model's own answers without seeing the reference, where the task's check accepts them
    token-matched-sft  as sft, stopped after as many target tokens as sdft trains on
    replay             as sft, mixed with dialogues that the base model wrote by itself (arXiv 2403.01244)
    wise-ft            sft, then the weights (1 − a)·θ₀ + a·θ₁ (arXiv 2109.01903)
    low-lr, low-rank   as sft with a tenth of the learning rate; with rank 1 at the same scale α/R
    kl, l2-sp, ewc, dft, stm, flow      as sft with another objective: sdft/objectives/
    sdft-onpolicy      on its own samples, towards a teacher that sees the answer (arXiv 2601.19897): forward KL to the
                       frozen base model; -reverse: reverse KL; -ema: to a moving average of the student (decay 0.99)

    sdft run --arms=sft,sdft,kl,replay
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from sdft.data.chat import Example
from sdft.distill import choose, mix, rewrite, write_distilled
from sdft.errors import SdftError, nearest
from sdft.experiment.base_text import base_dialogues
from sdft.experiment.context import Context
from sdft.experiment.onpolicy import demonstrations, student_samples
from sdft.model.batches import trainable
from sdft.model.io.adapters import save_adapter
from sdft.model.io.checkpoints import save_checkpoint
from sdft.model.llama import Llama
from sdft.model.lora import lora_layers
from sdft.objectives import ObjectiveInputs, check_objective
from sdft.train.order import hold_out, step_examples, steps_per_epoch
from sdft.train.settings import TrainSettings

FISHER_TEXTS = 32           # of ewc


@dataclass(frozen=True)
class Arm:
    """One training of a run."""

    name: str
    targets: Sequence[Example]
    settings: TrainSettings
    inputs: ObjectiveInputs = ObjectiveInputs()
    folder: str = ""                # of its training, in the run folder: see TRAINED_AS
    target_set: str = ""            # "original" or "distilled", where all targets are from one of them
    delta_share: float = 1.0        # share of ΔW that remains after training

    def finish(self, context: Context, model: Llama) -> None:
        """Interpolate the weights (wise-ft) and save them in the arm's own folder."""
        if self.delta_share == 1:
            return
        interpolate(model, context.separate_base(model), self.delta_share)
        if lora_layers(model):
            save_adapter(model, context.folder / self.name, context.model_name)
        else:
            save_checkpoint(model, context.tokenizer, context.folder / self.name)


def arms_of(context: Context, originals: Sequence[Example], distilled: Sequence[Example]) -> Iterator[Arm]:
    """The arms that the settings name, in their order; each is prepared when its turn comes."""
    for name in dict.fromkeys(context.arms.arms):
        settings = settings_of(name, context.settings)
        sft, sdft = (Arm(name, targets, settings, folder=TRAINED_AS.get(name, name), target_set=target_set)
                     for target_set, targets in (("original", originals), ("distilled", distilled)))
        yield ARMS[name](context, sft, sdft)


def settings_of(name: str, settings: TrainSettings) -> TrainSettings:
    """The run's training settings as arm `name` uses them; those that its objective does not read are at their default.
    So the stored settings say what was used, and two runs that differ in nothing else share a training."""
    changes: Mapping[str, Mapping[str, Any]] = {
        "low-lr": {"lr": settings.lr / 10},
        "low-rank": {"lora_rank": 1,            # at the same scale: α/R, or α/√R with rslora
                     "lora_alpha": settings.lora_alpha / settings.lora_rank ** (0.5 if settings.rslora else 1)},
        **{objective: {"objective": objective} for objective in OBJECTIVES}, **ON_POLICY}
    own = replace(settings, **changes.get(name, {}))
    return replace(own, **{setting: getattr(TrainSettings, setting) for setting, objectives in READ_BY.items()
                           if own.objective not in objectives})


def check_arms(names: Sequence[str], settings: TrainSettings) -> None:
    """Raise SdftError for an arm that does not exist, or that is impossible with these settings."""
    for name in names:
        if name not in ARMS:
            raise SdftError(f"arms: expected names out of {', '.join(ARMS)}, got {name!r}{nearest(name, ARMS)}")
        check_objective(settings_of(name, settings))
        if name == "low-rank" and settings.method == "full":
            raise SdftError("arm low-rank has an adapter of rank 1: expected method = lora, got full; leave it out")


def self_output(context: Context, sft: Arm, sdft: Arm) -> Arm:
    """As sdft, but the base model gets the prompt of training: it sees no reference answer."""
    records, folder = context.task.train, context.folder / "self-output"
    with context.timed("answer self-output"):
        answers = rewrite(context.base, context.tokenizer, records, context.train_template, context.sampling,
                          context.batch_size, context.chat, folder / "answers.jsonl")
    chosen = mix(choose(records, answers, context.task.check, context.limits), context.mix_ratio,
                 context.settings.seed)
    write_distilled(folder / "distilled.jsonl", chosen)
    return replace(sft, targets=context.examples(chosen), target_set="")


def token_matched(context: Context, sft: Arm, sdft: Arm) -> Arm:
    """As sft, with the number of steps whose target tokens come nearest to those of all epochs of sdft. The learning
    rate falls to 0 over these steps. Additional epochs continue like the first ones."""
    settings = sft.settings
    longest = min(settings.max_length, context.base.config.context_length)
    ours, theirs = (hold_out(trainable(arm.targets, longest)[0], settings.validation, settings.seed)[0]
                    for arm in (sft, sdft))
    total = settings.steps or settings.epochs * steps_per_epoch(theirs, settings.batch_size)
    goal = sum(_target_tokens(theirs, step, settings) for step in range(total))
    return replace(sft, settings=replace(settings, steps=_steps_to(goal, ours, settings)))


def _target_tokens(examples: Sequence[Example], step: int, settings: TrainSettings) -> int:
    """The number of target tokens of one optimiser step."""
    return sum(sum(e.mask[1:]) for e in step_examples(examples, step, settings.batch_size, settings.seed))


def _steps_to(goal: int, examples: Sequence[Example], settings: TrainSettings) -> int:
    """The number of steps (at least 1) whose target tokens sum most nearly to `goal`."""
    done, step = _target_tokens(examples, 0, settings), 1
    while done + (more := _target_tokens(examples, step, settings)) / 2 <= goal:
        done, step = done + more, step + 1
    return step


def replay(context: Context, sft: Arm, sdft: Arm) -> Arm:
    """As sft, with dialogues of the base model: they are the share `replay_fraction` of all training examples."""
    share = context.arms.replay_fraction
    count = max(1, round(share / (1 - share) * len(context.task.train)))            # m of n + m
    return replace(sft, targets=[*sft.targets, *base_dialogues(context, count)], target_set="")


def ewc(context: Context, sft: Arm, sdft: Arm) -> Arm:
    """As sft with a penalty by the Fisher information on FISHER_TEXTS dialogues that the base model wrote."""
    return replace(sft, inputs=ObjectiveInputs(base_text=base_dialogues(context, FISHER_TEXTS)))


def on_policy(context: Context, sft: Arm, sdft: Arm) -> Arm:
    """The records' prompts, answered by the model itself at every step, with the arm's objective and teacher."""
    shown = demonstrations(context)
    kept = {prompt.id for prompt in shown}
    return replace(sft, targets=[example for example in sft.targets if example.id in kept], target_set="",
                   inputs=student_samples(context, shown))


@torch.no_grad()
def interpolate(model: Llama, base: Llama | None, share: float) -> None:
    """Set the weights of `model` to (1 − a)·θ₀ + a·θ₁, with a the `share` (WiSE-FT, arXiv 2109.01903). With an adapter
    this is a·ΔW, a factor on B. Else `base` holds θ₀, and the sum is taken in fp32."""
    for layer in lora_layers(model).values():
        layer.lora_B.mul_(share)
    if base is not None:
        before = dict(base.named_parameters())
        for name, weight in model.named_parameters():
            weight.copy_(before[name].float().lerp(weight.float(), share))


Prepare = Callable[[Context, Arm, Arm], Arm]        # (context, sft and sdft with the arm's name and settings) → the arm
OBJECTIVES = ("kl", "l2-sp", "ewc", "dft", "stm", "flow")
ON_POLICY = {f"sdft-onpolicy{direction}{teacher}": {"objective": f"onpolicy{direction}", "teacher_ema": ema}
             for direction in ("", "-reverse") for teacher, ema in (("", 0.0), ("-ema", 0.99))}
ARMS: Mapping[str, Prepare] = {
    "sft": lambda context, sft, sdft: sft, "sdft": lambda context, sft, sdft: sdft,
    "self-output": self_output, "token-matched-sft": token_matched, "replay": replay,
    "wise-ft": lambda context, sft, sdft: replace(sft, delta_share=context.arms.wise_ft_alpha),
    **dict.fromkeys(("low-lr", "low-rank", *OBJECTIVES), lambda context, sft, sdft: sft), "ewc": ewc,
    "stm": lambda context, sft, sdft: replace(sft, target_set=""),      # only the probable ones of the original set
    **dict.fromkeys(ON_POLICY, on_policy),
}
TRAINED_AS = {"wise-ft": "sft"}                 # arm → the arm whose training it uses
# Training setting → the objectives that read it; all others are read by every one.
READ_BY = {"penalty_weight": ("kl", "l2-sp", "ewc"), "stm_threshold": ("stm",),
           "teacher_ema": ("onpolicy", "onpolicy-reverse")}
