"""On-policy self-distillation: the student writes, and at each token is pulled to the seed that was shown the answer.

    y ~ π(· | x)        Σ_t KL( π_T(· | c, x, y*, y_<t) ‖ π(· | x, y_<t) )        (arXiv 2601.19897, also named SDFT)

π is the model being trained, y its own sample, drawn anew at every step, without a gradient through the drawing; π_T is
the teacher, who reads the same y behind a prompt with the demonstration y* (the distillation template c). "onpolicy"
takes the forward divergence above, with which the published results were made, "onpolicy-reverse" KL(π ‖ π_T). With
the setting `ema` at 0 the teacher is the seed, else a moving average of the student (`sdft.objectives.ema_teacher`).
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from sdft.data.chat import Example
from sdft.errors import SdftError
from sdft.kernels.divergence import kl
from sdft.model.batches import Batch, may_share, pack
from sdft.objectives.ema_teacher import EmaTeacher
from sdft.objectives.hidden_states import HiddenStates, Start


@dataclass(frozen=True)
class OnPolicy:
    """Σ KL(teacher ‖ student) over the targets of a batch, which are the student's own samples; or its reverse."""

    shown: Mapping[str, Example]            # record → the teacher's prompt
    teacher: EmaTeacher
    reverse: bool

    def __call__(self, batch: Batch, hidden: HiddenStates) -> Tensor:
        samples = [own.tolist() for own in hidden.labels.split(batch.counts)]
        told = pack([_continued(self.shown[id], own) for id, own in zip(batch.ids, samples, strict=True)],
                    may_share(batch.tokens.device)).to(batch.tokens.device)
        with self.teacher.teaching() as teacher:
            x = HiddenStates(teacher, told).trained                                    # (n, D), row by row the same targets
        return kl(hidden.trained, x, hidden.head, self.reverse)


def _continued(prompt: Example, answer: list[int]) -> Example:
    """The prompt with the answer behind it as targets."""
    return Example(prompt.id, [*prompt.tokens, *answer], [False] * len(prompt.tokens) + [True] * len(answer))


def onpolicy(start: Start, reverse: bool = False) -> OnPolicy:
    """Forward KL, or with `reverse` the reverse one. Raises SdftError where nothing samples or demonstrates."""
    inputs = start.inputs
    if inputs.sample is None or not inputs.shown:
        raise SdftError(f"objective {start.settings.objective} needs the model's own samples and demonstrations: have "
                        "them made by an arm, as in `sdft run --arms=sft,sdft-onpolicy`")
    return OnPolicy({prompt.id: prompt for prompt in inputs.shown}, start.teacher, reverse)


def onpolicy_reverse(start: Start) -> OnPolicy:
    """`onpolicy` with KL(student ‖ teacher)."""
    return onpolicy(start, reverse=True)
