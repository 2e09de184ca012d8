"""The arms of a run: plain fine-tuning (sft), self-distillation (sdft), and the rivals that explain or undercut it.

An arm is what is trained on, with which settings, and what happens afterwards; all go through the same loop. "As sft"
means the data's own answers and the run's settings, but for what is said.

    self-output        the seed's own answers, no reference shown, where the task's check accepts them, else originals
    token-matched-sft  as sft, for so many steps that it learns as many target tokens as sdft does
    replay             as sft, with a share of dialogues that the seed wrote by itself (arXiv 2403.01244)
    wise-ft            sft, then (1 − a)·θ₀ + a·θ₁ (arXiv 2109.01903)
    low-lr, low-rank   as sft with a tenth of the learning rate; with rank 1 at the same scale α/R
    kl, l2-sp, ewc, dft, stm, flow      as sft with another objective: sdft/train/objectives/
    sdft-onpolicy      pulled to the seed that is shown the answer, on its own samples (arXiv 2601.19897): forward KL to
                       the frozen seed; -reverse: reverse KL; -ema: to a moving average of the student (decay 0.99)

    sdft run --arms=sft,sdft,kl,replay
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from sdft.data.chat import Example
from sdft.distill import choose, leave_out, mix, rewrite, write_distilled
from sdft.errors import SdftError, nearest
from sdft.experiment.base_text import base_dialogues
from sdft.experiment.context import Context
from sdft.experiment.onpolicy import demonstrations, student_samples
from sdft.model.batches import trainable
from sdft.model.io.adapters import save_adapter
from sdft.model.io.saving import save_checkpoint
from sdft.model.llama import Llama
from sdft.model.lora import lora_layers
from sdft.objectives import ObjectiveInputs, check_objective
from sdft.train.order import hold_out, step_examples, steps_per_epoch
from sdft.train.settings import TrainSettings

FISHER_TEXTS = 32           # of ewc


@dataclass(frozen=True)
class Arm:
    """One thing to train."""

    name: str
    targets: Sequence[Example]
    settings: TrainSettings
    inputs: ObjectiveInputs = ObjectiveInputs()
    folder: str = ""                # of its training, in the run folder: see TRAINED_AS
    on: str = ""                    # "original" or "distilled": the set that its targets are; "": neither
    kept: float = 1.0               # the share of the change of the weights that stays after training

    def finish(self, context: Context, model: Llama) -> None:
        """What comes after training: the interpolation of wise-ft, saved in a folder of its own."""
        if self.kept == 1:
            return
        interpolate(model, context.separate_base(model), self.kept)
        if lora_layers(model):
            save_adapter(model, context.folder / self.name, context.model_name)
        else:
            save_checkpoint(model, context.tokenizer, context.folder / self.name)


def arms_of(context: Context, originals: Sequence[Example], rewritten: Sequence[Example]) -> Iterator[Arm]:
    """The arms that the settings name, in their order; what an arm needs is made when its turn comes."""
    for name in dict.fromkeys(context.arms.arms):
        settings = settings_of(name, context.settings)
        sft, sdft = (Arm(name, targets, settings, folder=TRAINED_AS.get(name, name), on=on)
                     for on, targets in (("original", originals), ("distilled", rewritten)))
        yield ARMS[name](context, sft, sdft)


def settings_of(name: str, settings: TrainSettings) -> TrainSettings:
    """The run's settings as an arm trains with them; those that its objective does not read are at their defaults.

    So what is stored says what was used, and runs that differ in nothing else have the same training.
    """
    own = replace(settings, **CHANGES[name](settings)) if name in CHANGES else settings
    return replace(own, **{setting: getattr(TrainSettings, setting) for setting, objectives in READ_BY.items()
                           if own.objective not in objectives})


def check_arms(names: Sequence[str], settings: TrainSettings) -> None:
    """Raise SdftError for an arm that does not exist, or that these settings cannot have."""
    for name in names:
        if name not in ARMS:
            raise SdftError(f"arms: expected names out of {', '.join(ARMS)}, got {name!r}{nearest(name, ARMS)}")
        check_objective(settings_of(name, settings))
        if name == "low-rank" and settings.method == "full":
            raise SdftError("arm low-rank has an adapter of rank 1: expected method = lora, got full; leave it out")


def self_output(context: Context, sft: Arm, sdft: Arm) -> Arm:
    """As sdft, but the seed is asked as in training: it sees no reference answer."""
    records, folder = context.task.train, context.folder / "self-output"
    with context.timed("answer self-output"):
        answers = rewrite(context.base, context.tokenizer, records, context.train_template, context.sampling,
                          context.rows, context.chat, folder / "answers.jsonl")
    chosen = leave_out(choose(records, answers, context.task.check, context.limits), context.ratio, context.settings.seed)
    write_distilled(folder / "distilled.jsonl", chosen)
    return replace(sft, targets=context.examples(mix(records, chosen)), on="")


def token_matched(context: Context, sft: Arm, sdft: Arm) -> Arm:
    """As sft, ending after the step at which it has learned most nearly as many target tokens as sdft in all epochs.

    The learning rate falls to 0 over these steps. An epoch more or less than sft's is begun like any other.
    """
    settings, ours, theirs = sft.settings, _trained(context, sft.targets), _trained(context, sdft.targets)
    total = settings.steps or settings.epochs * steps_per_epoch(theirs, settings.batch_size)
    goal = sum(_learned(theirs, step, settings) for step in range(total))
    return replace(sft, settings=replace(settings, steps=_steps_to(goal, ours, settings)))


def _trained(context: Context, targets: Sequence[Example]) -> list[Example]:
    """What remains for training of an arm's targets."""
    settings = context.settings
    kept, _ = trainable(targets, min(settings.max_length, context.base.config.context_length))
    return hold_out(kept, settings.validation, settings.seed)[0]


def _learned(examples: Sequence[Example], step: int, settings: TrainSettings) -> int:
    """The target tokens of one optimiser step."""
    return sum(sum(e.mask[1:]) for e in step_examples(examples, step, settings.batch_size, settings.seed))


def _steps_to(goal: int, examples: Sequence[Example], settings: TrainSettings) -> int:
    """The number of steps (at least 1) after which the targets learned are nearest to `goal`."""
    learned, step = _learned(examples, 0, settings), 1
    while learned + (more := _learned(examples, step, settings)) / 2 <= goal:
        learned, step = learned + more, step + 1
    return step


def replay(context: Context, sft: Arm, sdft: Arm) -> Arm:
    """As sft, with so many dialogues of the seed's own that they are the share `replay` of what is trained on."""
    share = context.arms.replay_fraction
    count = max(1, round(share / (1 - share) * len(context.task.train)))                # m of n + m
    return replace(sft, targets=[*sft.targets, *base_dialogues(context, count)], on="")


def wise_ft(context: Context, sft: Arm, sdft: Arm) -> Arm:
    """Sft, trained once for both where it is an arm too; then the share `wise` of its ΔW."""
    return replace(sft, kept=context.arms.wise_ft_alpha)


def ewc(context: Context, sft: Arm, sdft: Arm) -> Arm:
    """The Fisher of ewc is taken on dialogues that the seed wrote by itself, however few the records are."""
    return replace(sft, inputs=ObjectiveInputs(base_text=base_dialogues(context, FISHER_TEXTS)))


def on_policy(context: Context, sft: Arm, sdft: Arm) -> Arm:
    """The records' own prompts, answered anew by the model at every step, with the arm's objective and teacher."""
    shown = demonstrations(context)
    kept = {prompt.id for prompt in shown}
    return replace(sft, targets=[example for example in sft.targets if example.id in kept], on="",
                   inputs=student_samples(context, shown))


def stm(context: Context, sft: Arm, sdft: Arm) -> Arm:
    """Of its targets only the probable ones are learned, so they are not the set that they are taken from."""
    return replace(sft, on="")


def _as_sft(context: Context, sft: Arm, sdft: Arm) -> Arm:
    return sft


@torch.no_grad()
def interpolate(model: Llama, base: Llama | None, share: float) -> None:
    """Leave (1 − a)·θ₀ + a·θ₁ in `model`, a the `share` (WiSE-FT, arXiv 2109.01903).

    With an adapter that is a·ΔW, by a factor on B; else `seed` holds θ₀, and the sum is taken in fp32.
    """
    for layer in lora_layers(model).values():
        layer.lora_B.mul_(share)
    if base is not None:
        before = dict(base.named_parameters())
        for name, weight in model.named_parameters():
            weight.copy_(before[name].float().lerp(weight.float(), share))


def low_rank(settings: TrainSettings) -> dict[str, Any]:
    """ΔW of rank 1 at the same scale: α/R, or α/√R where the settings say rslora."""
    return {"lora_rank": 1, "lora_alpha": settings.lora_alpha / settings.lora_rank ** (0.5 if settings.rslora else 1)}


Make = Callable[[Context, Arm, Arm], Arm]         # lab, then sft and sdft with the arm's name and settings → the arm
OBJECTIVES = ("kl", "l2-sp", "ewc", "dft", "stm", "flow")
ON_POLICY = {f"sdft-onpolicy{direction}{teacher}": {"objective": f"onpolicy{direction}", "teacher_ema": ema}
             for direction in ("", "-reverse") for teacher, ema in (("", 0.0), ("-ema", 0.99))}
ARMS: Mapping[str, Make] = {
    "sft": _as_sft, "sdft": lambda context, sft, sdft: sdft, "self-output": self_output,
    "token-matched-sft": token_matched, "replay": replay, "wise-ft": wise_ft, "low-lr": _as_sft, "low-rank": _as_sft,
    **dict.fromkeys(OBJECTIVES, _as_sft), "ewc": ewc, "stm": stm, **dict.fromkeys(ON_POLICY, on_policy),
}
TRAINED_AS = {"wise-ft": "sft"}                 # an arm that goes on from another's training

# Arm → the training settings that are its own.
CHANGES: Mapping[str, Callable[[TrainSettings], dict[str, Any]]] = {
    "low-lr": lambda settings: {"lr": settings.lr / 10}, "low-rank": low_rank,
    **{name: lambda _, name=name: {"objective": name} for name in OBJECTIVES},
    **{name: lambda _, own=own: own for name, own in ON_POLICY.items()},
}
# Training setting → the objectives that read it; all others are read by every one.
READ_BY = {"penalty_weight": ("kl", "l2-sp", "ewc"), "stm_threshold": ("stm",), "teacher_ema": ("onpolicy", "onpolicy-reverse")}
