"""On-policy self-distillation: the student writes, and each token's distribution is pulled towards the teacher's.

    y ~ π(· | x)        Σ_t KL( π_T(· | c, x, y*, y_<t) ‖ π(· | x, y_<t) )        (arXiv 2601.19897, also named SDFT)

π is the student, the model being trained. y is its own sample, drawn at every step, without a gradient through the
sampling. The teacher π_T (ema_teacher.py) reads the same y after a prompt with the demonstration y* (distillation
template c). "onpolicy" minimises this divergence, as the published results did; "onpolicy-reverse" KL(π ‖ π_T).
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
    """Σ KL(teacher ‖ student), or its reverse, over the targets of a batch: the student's own samples."""

    shown: Mapping[str, Example]            # record → the teacher's prompt
    teacher: EmaTeacher
    reverse: bool

    def __call__(self, batch: Batch, hidden: HiddenStates) -> Tensor:
        device, prompts = batch.tokens.device, [self.shown[id] for id in batch.ids]
        samples = [labels.tolist() for labels in hidden.labels.split(batch.counts)]
        taught = pack([Example(x.id, [*x.tokens, *y], [False] * len(x.tokens) + [True] * len(y))
                       for x, y in zip(prompts, samples, strict=True)], may_share(device)).to(device)
        with self.teacher.teaching() as teacher:
            x = HiddenStates(teacher, taught).trained                              # (n, D), at the same targets
        return kl(hidden.trained, x, hidden.head, self.reverse)


def onpolicy(start: Start, reverse: bool = False) -> OnPolicy:
    """The on-policy objective. Raises SdftError if the inputs cannot draw samples or have no demonstrations."""
    if start.inputs.sample is None or not start.inputs.shown:
        raise SdftError(f"objective {start.settings.objective} needs the model's own samples and demonstrations: train "
                        "it as an arm, as in `sdft run --arms=sft,sdft-onpolicy`")
    return OnPolicy({prompt.id: prompt for prompt in start.inputs.shown}, start.teacher, reverse)
