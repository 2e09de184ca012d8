"""The types of a run's results: measures.json, summary.json, and the lines of its journals.

    measures.json = Measures        eval/<arm>/<suite>.jsonl = AnswerLine      rewrites.jsonl  = RewriteLine
    summary.json  = Summary         <arm>/log.jsonl          = LogLine         distilled.jsonl = DistilledLine
    cells.json of a study: sdft/studies/results.py

Writers and readers share these types; this module imports nothing of sdft. Units, where a line does not say otherwise:
NLL and KL in nats per token; shares, scores, total variation, ROUGE-L and BLEU from 0 to 1; lengths in tokens; norms in
the unit of the weights; `low` and `high` bound the 95 % bootstrap interval. A measure's formula is in the docstring of
the module that computes it.
"""
from __future__ import annotations

from typing import NotRequired, TypedDict

FORMAT = 3          # version of a run folder's content; a folder of another version is refused


class AnswerLine(TypedDict):
    id: str                         # of the test item
    kind: str                       # of the item; "" where the suite has no kinds
    prompt: str                     # the last user turn
    output: str
    tokens: int                     # length of the output
    finish: str                     # "stop": the model ended it; "length": it was cut
    score: float | None             # None in a suite that is not scored


class RewriteLine(TypedDict):
    id: str                         # of the record
    text: str
    tokens: list[int]               # without the stop token
    finish: str                     # "stop" or "length"
    seed: int                       # of the sampling
    prompt: str                     # hash of the prompt's tokens


class DistilledLine(TypedDict):
    """The training answer chosen for one record."""
    id: str
    instruction: str
    reference: str                  # the data's answer
    response: str                   # the rewrite, or the reference again
    source: str                     # "rewrite" or "original"
    reason: str                     # why the rewrite was rejected; "" where it was accepted
    system: NotRequired[str]
    history: NotRequired[list[list[str]]]           # earlier turns, as [user, assistant] pairs


class LogLine(TypedDict):
    step: int                       # of the optimiser, from 1
    epoch: float
    loss: float                     # nats per target token
    lr: float
    grad_norm: float                # before clipping
    delta_norm: float               # ‖ΔW‖_F after the step
    tokens: int                     # of the step
    target_tokens: int
    tokens_per_second: float
    seconds: float
    validation_loss: NotRequired[float]             # at the end of an epoch, with held-out records


class Difference(TypedDict):
    """A paired difference over n items, answers or records."""
    difference: float
    low: float
    high: float
    n: int


class Comparison(Difference):
    """Score of this arm − score of another, on the same items."""
    p: float                        # two-sided
    test: str                       # "McNemar" or "sign-flip"
    p_holm: NotRequired[float]      # Holm's adjustment over the run's comparisons; absent in a primary end point's


class Share(TypedDict):
    """A share of n items, with Wilson's 95 % interval."""
    share: float
    low: float
    high: float
    n: int


class Flips(TypedDict):
    """Items of a suite counted one by one. An item is solved where its score is at least ½."""
    solved_by_base: int
    lost: int                       # solved by the base model, and no longer by this arm; 0 in arm base
    gained: int                     # not solved by the base model, but by this arm; 0 in arm base


class KindResult(Flips):
    """The items of one kind."""
    mean: float
    n: int


class ChanceAdjusted(TypedDict):
    """Forgetting and backward transfer of multiple choice, without the flips expected of guessing."""
    forgetting: float
    backward_transfer: float
    flips: float                    # expected of guessing, each way, as a share of all n items
    n: int                          # items with options to choose from


class ScoreSummary(TypedDict):
    """The scores of n items."""
    mean: float
    low: float
    high: float
    n: int
    tokens_mean: float              # mean length of the outputs


class SuiteResult(ScoreSummary, Flips):
    """One arm on one suite: the mean score, what was lost and gained, and comparisons with other arms."""
    metric: str                     # name of the score, such as "accuracy"
    by_kind: dict[str, KindResult]  # kind of item → its result
    forgetting: NotRequired[Share]  # F: lost / solved_by_base; absent in arm base, and where n is 0
    backward_transfer: NotRequired[Share]           # BT: gained / the others; absent as forgetting is
    chance_adjusted: NotRequired[ChanceAdjusted]    # absent where no item has options to choose from
    noise_floor: NotRequired[Share]                 # of arm base: F between two answers of the base model
    parts: NotRequired[dict[str, SuiteResult]]      # "brief": one word or the prompt passes; "long": the others
    against_base: NotRequired[Comparison]           # of the scores; absent in arm base
    against_sft: NotRequired[Comparison]            # absent in arms base and sft, and in a run without sft
    forgetting_against_sft: NotRequired[Comparison]             # F − F of sft, on the items that the base model solves


def comparisons(suite: SuiteResult) -> dict[str, Comparison]:
    """The comparisons of a suite's scores: name of the other arm → comparison."""
    pairs = (("base", suite.get("against_base")), ("sft", suite.get("against_sft")))
    return {arm: comparison for arm, comparison in pairs if comparison is not None}


class Band(TypedDict):
    """The tokens at a range of positions in their answers; positions count from 1."""
    first: int
    last: int
    tokens: int
    nll: NotRequired[float]         # their mean NLL, or
    kl: NotRequired[float]          # their mean KL


class RecordGap(TypedDict):
    id: str
    nll: float                      # mean over its target tokens under the base model
    low: float                      # share of tokens with p < 0.4
    rank: float                     # mean; rank 0 is the most probable token
    rank0: float                    # share of tokens at rank 0
    tokens: int


class GapDifference(Difference):
    """Two targets of the same records, every record weighed alike; `…_with` is of the second, difference is of nll."""
    nll: float
    nll_with: float
    perplexity: float               # exp(nll)
    perplexity_with: float
    rank_mean: float
    rank_mean_with: float
    rank0: float
    rank0_with: float
    low_share: float                # share of tokens with p < 0.4
    low_share_with: float
    tokens: int
    tokens_with: int


# "with" is the name of the second set of targets; length_matched compares the first tokens, equally many of each pair.
_With = TypedDict("_With", {"with": str, "length_matched": GapDifference})


class PairedGap(GapDifference, _With):
    """The records whose targets differ."""


class Gap(TypedDict):
    """One set of targets under the base model, over all its target tokens."""
    nll: float
    perplexity: float               # exp(nll)
    rank_mean: float
    rank_median: float
    rank0: float                    # share of tokens at rank 0
    low: float                      # share of tokens with p < 0.4
    tokens: int
    by_position: list[Band]
    records: list[RecordGap]
    paired: NotRequired[PairedGap]  # absent in the first set, and where no target differs from the first set's


class TokenMapText(TypedDict):
    """One target token by token: three lists of equal length."""
    pieces: list[str]
    nll: list[float]                # nats
    rank: list[int]


class TokenMap(TypedDict):
    id: str                         # of the record
    texts: dict[str, TokenMapText]  # name of the set of targets → its text


class AnswerDrift(TypedDict):
    id: str                         # of the answer's prompt
    kl: float                       # mean over its tokens
    kl8: float                      # mean over its first 8 tokens; kl32: over its first 32
    kl32: float
    tokens: int


class Drift(TypedDict):
    """How far the next-token distribution moved, over the tokens of n answers; with n = 0, nothing else."""
    tokens: int
    n: int
    kl: NotRequired[float]
    kl_low: NotRequired[float]
    kl_high: NotRequired[float]
    kl8: NotRequired[float]         # over the first 8 tokens of each answer; this and the rest are absent in arm base
    kl8_low: NotRequired[float]
    kl8_high: NotRequired[float]
    kl32: NotRequired[float]        # over the first 32
    kl32_low: NotRequired[float]
    kl32_high: NotRequired[float]
    tv: NotRequired[float]          # total variation
    tv_low: NotRequired[float]
    tv_high: NotRequired[float]
    top1: NotRequired[float]        # share of tokens where both models have the same most probable token
    by_position: NotRequired[list[Band]]
    answers: NotRequired[list[AnswerDrift]]
    reverse: NotRequired[Drift]     # of an arm: reverse KL on its own answers
    against_sft: NotRequired[Difference]            # kl − kl of sft, per token
    kl8_against_sft: NotRequired[Difference]


class Texts(TypedDict, total=False):
    """Pairs of texts compared: an arm's answers and the base model's, or the n accepted rewrites and the originals."""
    rouge_l: float
    bleu: float                     # this and the cosine need the extra [eval]
    cosine: float                   # of sentence embeddings, −1 to 1
    length_mean: float              # of an arm's answers
    lengths: list[int]


class TargetTexts(Texts, total=False):
    """{} where no rewrite was accepted."""
    n: int


class LongAnswers(Share):
    """Answers of 25 words or more, among the prompts that the base model answers so: how many an arm keeps as long."""
    kept: int                       # the share is of these, and n is of the base model's
    shrunk: int                     # answers of less than a quarter of the base model's words
    against_sft: NotRequired[Comparison]            # share kept − that of sft


class General(Texts, Drift):
    """An arm on the general prompts: its texts, its drift, and the long answers that it keeps."""
    long_answers: NotRequired[LongAnswers]          # absent where the base model gives no long answer


class LayerActivations(TypedDict):
    """Hidden states compared with the base model's: after one layer, or means over layers."""
    layer: NotRequired[int]         # from 0
    relative: float                 # mean of ‖h − h₀‖ / ‖h₀‖
    cosine: float
    cka: float


class Activations(LayerActivations):
    """Drift of the hidden states, at `tokens` tokens of n answers."""
    layers: list[LayerActivations]
    tokens: int
    n: int


class Part(TypedDict, total=False):
    """What a result is of: a module (all three keys), the modules of one layer, or those of one kind together."""
    name: str                       # without ".weight"
    layer: int | None               # None outside the layers
    kind: str                       # such as "q_proj"


class Spectra(TypedDict, total=False):
    """What else was measured of a change ΔW: of one matrix, or means over the matrices that have it."""
    changed_bf16: float             # share of weights whose bf16 value changes
    stable_rank: float
    effective_rank: float
    spectral_shift: float
    left_cosine: float              # mean principal cosine of the leading singular vectors before and after
    right_cosine: float
    intruders: float                # leading singular vectors that are like none of the base model's


class PartShift(Part, Spectra):
    """The shift of a module, or of several as one vector."""
    norm: float                     # ‖ΔW‖_F
    relative: float                 # ‖ΔW‖_F / ‖W₀‖_F
    base: NotRequired[float]        # of a module: ‖W₀‖_F
    weights: NotRequired[int]       # of a module: how many
    spectrum: NotRequired[list[float]]              # of an adapter's module: singular values of ΔW, largest first


class Shift(Spectra):
    """How far the weights moved: all trained modules, then by module, layer and kind."""
    total: float                    # ‖ΔW‖_F
    relative: float                 # ‖ΔW‖_F / ‖W₀‖_F
    modules: list[PartShift]
    layers: list[PartShift]
    kinds: list[PartShift]
    unmatched: NotRequired[list[str]]               # of two checkpoints: tensors that only one of them has


class PartFisher(Part):
    """Σ F·ΔW² of a module, or of several."""
    shift: float                    # nats² per answer


class FisherShift(TypedDict):
    """Fisher-weighted weight shift Σ F·ΔW², in nats² per answer; measures.json has n, and no modules."""
    total: float
    layers: list[PartFisher]
    kinds: list[PartFisher]
    modules: NotRequired[list[PartFisher]]
    n: NotRequired[int]             # answers that F was estimated on


class PartComparison(Part):
    """Two changes ΔW₁ and ΔW₂ of a module, or of several as one vector."""
    cosine: float                   # ⟨ΔW₁, ΔW₂⟩ / (‖ΔW₁‖·‖ΔW₂‖)
    left_cosine: float | None       # mean principal cosine of the column spaces; None where it was not computed
    right_cosine: float | None      # of the row spaces
    norms: list[float]              # ‖ΔW₁‖_F, ‖ΔW₂‖_F
    left: NotRequired[list[float]]  # of a module: all principal cosines, largest first
    right: NotRequired[list[float]]


class AdapterComparison(PartComparison):
    """Two trainings of one base model: all common modules as one vector, then by layer and kind."""
    layers: list[PartComparison]
    kinds: list[PartComparison]
    unmatched: list[str]            # modules that only one of the two changes
    modules: NotRequired[list[PartComparison]]      # not in measures.json


class InterpolationPoint(TypedDict):
    """Mean NLL of n examples at the weights θ₀ + t·ΔW; in measures.json also that of the general answers."""
    t: float
    nll: float
    n: int
    tokens: NotRequired[int]        # not in measures.json
    nll_general: NotRequired[float]
    n_general: NotRequired[int]


class AuditExample(TypedDict):
    id: str                         # of the record
    instruction: str
    reference: str
    rewrite: str
    reason: str                     # "" where the rewrite was accepted


class Audit(TypedDict):
    records: int
    accepted: int                   # rewrites
    rejected: int
    reasons: dict[str, int]         # reason of rejection → records, most frequent first
    nominal_ratio: float            # share of rewrites asked for
    effective_share: float          # share of training targets that differ from the original
    changed_token_share: float
    tokens_original: int            # of the answers without distillation
    tokens_distilled: int           # of the answers trained on
    rouge_l: float | None           # of accepted rewrites to their references; None where there is none
    rouge_l_written: float | None   # of all rewrites
    examples: dict[str, list[AuditExample]]         # some "accepted" and some "rejected" ones


class TrainingSummary(TypedDict):
    records: int
    steps: int
    epochs: float
    tokens: int                     # of all steps
    target_tokens: int
    seconds: float
    left_out: dict[str, int]        # reason → records
    loss: float                     # of the last step
    validation_loss: float | None
    delta_norm: float               # ‖ΔW‖_F


class TrajectoryPoint(TypedDict):
    """A line of <arm>/trajectory.jsonl: an arm after some optimiser steps, on the first items of two suites."""
    step: int                       # 0 is the base model
    accuracy: float                 # mean of `scores`
    scores: list[float]             # of the first items of the task's suite, in their order
    solved_by_base: int             # of the first items of the suite `elaborate`
    lost: int                       # of those
    forgetting: float | None        # F: lost / solved_by_base; None where that is 0
    kept: list[int]                 # for each item that the base model solves, in their order: 1 still solved, 0 lost
    kl32: float                     # KL over the first 32 tokens of the base model's first general answers
    delta_norm: float               # ‖ΔW‖_F
    seconds: float                  # spent on this point


class Matched(Difference):
    """F of an arm − F of sft where their task accuracy is equal; n items that the base model solves."""
    accuracy: float                 # the highest that both reach
    forgetting: float               # F of this arm where it first reaches it; forgetting_with: of sft
    forgetting_with: float
    step: float                     # the step at which this arm first reaches it; step_with: sft
    step_with: float
    n_task: int                     # items that the accuracy is of


class RecoveryCheck(TypedDict):
    """F after some steps of further training on k dialogues of the base model."""
    k: int
    step: int
    forgetting: float


class Recovery(TypedDict):
    """Training an arm further on k dialogues of the base model until F < 10 %: spurious or real forgetting."""
    forgetting: float               # F before the first step
    n: int                          # items that F is of: the base model solves them
    steps: dict[str, int | None]    # "k1", "k3", "k10", "k30" → the first checked step with F < 10 %; None: no check
    checks: list[RecoveryCheck]     # in order; none after F < 10 %


class Transfer(TypedDict):
    """What a later stage changed of a task that an earlier stage trained, its own stage."""
    base: float                     # mean score of the base model
    altitude: float                 # directly after the task's own stage
    after: float                    # after the later stage
    raw: Comparison                 # after − altitude
    retained: NotRequired[Share]    # (after − base) / (altitude − base), with a bootstrap interval; absent without gain
    solved: int                     # items solved after the task's own stage
    lost: int                       # of these, by the later stage
    gained: int                     # of the others
    forgetting: NotRequired[Share]  # F: lost / solved; absent where that is 0
    backward_transfer: NotRequired[Share]           # BT: gained / the others; absent where there are none
    retained_against_sft: NotRequired[Difference]   # absent in arm sft, and where either share is absent


class LaterStage(TypedDict):
    """One arm after a later stage of a run: a task of the setting `then`."""
    task: str
    suites: dict[str, SuiteResult]  # first suite of every task so far, and `elaborate`; against the base model
    transfer: dict[str, Transfer]   # first suite of every earlier task; {} in arm base
    training: NotRequired[TrainingSummary]          # absent in arm base
    accepted: NotRequired[int]      # rewrites that this arm is trained on; absent in arms without rewrites


class ArmChange(TypedDict, total=False):
    """What training changed; absent in arm base."""
    shift: Shift
    activations: Activations
    interpolation: list[InterpolationPoint]
    fisher: FisherShift
    on_task: Drift               # on the task's test items; absent where the base model answers none


class MeasuredArm(ArmChange):
    """measured/<arm>.json: what was measured of an arm besides its abilities and its training."""
    general: Drift               # on the general prompts


class ArmMeasures(ArmChange):
    suites: dict[str, SuiteResult]
    general: General
    targets: NotRequired[str]       # "original", "distilled", or "" where the arm has targets of its own
    training: NotRequired[TrainingSummary]
    matched: NotRequired[Matched]   # with sft at equal task accuracy; absent without eval_every
    recovery: NotRequired[Recovery]                 # absent where it was not asked for
    then: NotRequired[dict[str, LaterStage]]        # "1", "2", … → stage; absent where no task follows


class TargetMeasures(TypedDict):
    """What was measured of the training targets, before training (kept as gap.json)."""
    gap: dict[str, Gap]             # "original", "distilled"
    token_map: list[TokenMap]
    texts: TargetTexts
    audit: Audit


class Measures(TargetMeasures):
    arms: dict[str, ArmMeasures]    # in the order of the run, "base" first
    between: dict[str, AdapterComparison]           # "sft, sdft" → their changes compared


class Summary(TypedDict):
    format: int                     # FORMAT of the folder
    columns: list[str]              # measures
    table: dict[str, dict[str, float | None]]       # arm → column → value
    seconds: dict[str, float]       # stage → seconds
    source: str                     # where the records came from
    report: str                     # path of report.html
