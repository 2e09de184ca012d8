"""Every objective's loss and gradient on a model of one feature, where both can be written down.

A token of odds o has the feature x = log o and the hidden state h = W·x; the head [1, 0] gives the first token of two
the probability p = σ(h) = o^W / (1 + o^W). The seed has W = 1, so p₀ = o / (1 + o); the adapter s·B·A = 2 makes it
W = 3, so p = o³ / (1 + o³):

    o = 2      p₀ = 2/3     p = 8/9
    o = 1/3    p₀ = 1/4     p = 1/28

∂h/∂W = x, and −log p has ∂/∂h = p − 1 where the target is the first token, and p where it is the second.
"""
from __future__ import annotations

from math import exp, log
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sdft.data.chat import Example
from sdft.model.batches import pack
from sdft.model.lora import adapt, lora_layers
from sdft.objectives import HiddenStates, ObjectiveInputs, Start, cross_entropy, make_objective
from sdft.objectives.ema_teacher import EmaTeacher
from sdft.train import TrainSettings

SCALE, A, B = 2.0, 0.25, 4.0                    # s·B·A = 2; exact in fp32
FIRST = Example("first", [0, 0], [False, True])                 # after token 0 comes token 0
SECOND = Example("second", [1, 0], [False, True])               # after token 1 comes token 0
OTHER = Example("other", [0, 1], [False, True])                 # after token 0 comes token 1
BOTH = Example("both", [0, 0, 1, 0], [False, True, False, True])        # what FIRST and SECOND teach, in one record


class Line(nn.Module):
    """What objectives ask of a model, with the odds of its two tokens; its adapter is still zero."""

    def __init__(self, first: float, second: float, weight: float = 1.0):
        super().__init__()
        self.x = torch.tensor([[first], [second]], dtype=torch.float64).log()
        self.head_weight = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
        self.proj = nn.Linear(1, 1, bias=False, dtype=torch.float64).requires_grad_(False)
        self.proj.weight.fill_(weight)
        self.config, self.device = SimpleNamespace(context_length=8, to_hf=dict), torch.device("cpu")
        adapt(self, "proj", rank=1, alpha=SCALE, dropout=0.0, rslora=False).lora_A.data.fill_(A)

    def hidden(self, tokens, positions, attend, rows, checkpoint=False):
        return self.proj(self.x[tokens[rows]])


def prepared(model, folder, records, inputs=ObjectiveInputs(), **settings):
    """The objective as training would prepare it, before the adapter is moved away from zero."""
    settings = TrainSettings(**settings)
    factors = {name: getattr(model.proj, name) for name in ("lora_A", "lora_B")}
    teacher = EmaTeacher(model, factors, settings.teacher_ema)
    objective = make_objective(Start(model, records, settings, folder, teacher, inputs))
    model.proj.lora_B.data.fill_(B)
    teacher.follow()
    return objective


def check(objective, model, records, loss, slope):
    """`slope` is the derivative by W, which reaches A by s·B and B by s·A; to 1e-6, as the factors are fp32."""
    batch = pack(records)
    found = objective(batch, HiddenStates(model, batch))
    found.backward()
    assert found.item() == pytest.approx(loss)
    assert model.proj.lora_A.grad.item() == pytest.approx(SCALE * B * slope)
    assert model.proj.lora_B.grad.item() == pytest.approx(SCALE * A * slope)


def test_cross_entropy_pulls_by_what_is_missing(tmp_path):
    model = Line(2, 1 / 3)
    objective = prepared(model, tmp_path, [FIRST, OTHER])
    assert objective is cross_entropy
    check(objective, model, [FIRST, OTHER], -log(8 / 9) - log(1 / 9), (8 / 9 - 1) * log(2) + 8 / 9 * log(2))


def test_dft_pulls_by_the_probability_times_what_is_missing(tmp_path):
    """−p̄·log p has ∂/∂h = p·(p − 1); through p̄ as well it would be p·(p − 1)·(1 + log p)."""
    model = Line(2, 1 / 3)
    objective = prepared(model, tmp_path, [FIRST, SECOND], objective="dft")
    check(objective, model, [FIRST, SECOND], -8 / 9 * log(8 / 9) - 1 / 28 * log(1 / 28),
          8 / 9 * (8 / 9 - 1) * log(2) + 1 / 28 * (1 / 28 - 1) * log(1 / 3))


def test_stm_trains_on_a_target_of_0_401_under_the_base_model_and_not_on_one_of_0_399(tmp_path):
    """By the base model's probability: after training both are below the default of 0.4."""
    odds = 0.401 / 0.599
    model = Line(odds, 0.399 / 0.601)
    objective = prepared(model, tmp_path, [FIRST, SECOND], objective="stm")
    p = odds**3 / (1 + odds**3)
    assert p < 0.4
    check(objective, model, [FIRST, SECOND], -log(p), (p - 1) * log(odds))


def test_stm_has_the_floor_that_is_set(tmp_path):
    for floor, kept in ((0.26, [1, 0]), (0.24, [1, 1])):                # p₀ = 2/3 and 1/4
        objective = prepared(Line(2, 1 / 3), tmp_path, [FIRST, SECOND], objective="stm", stm_threshold=floor)
        assert [objective.weights[id].item() for id in ("first", "second")] == kept


def test_flow_weighs_a_record_by_its_mean_loss_over_the_median(tmp_path):
    """p₀ = 1/4 and 1/256, so ℓ₀ of the records is log 4 times 1, (1 + 1 + 4)/3 = 2 and 4: weights e^(−1/2, −1, −2)."""
    model = Line(1 / 3, 1 / 255)
    mixed = Example("mixed", [0, 0, 0, 1, 0], [False, True, True, False, True])
    records = [FIRST, mixed, SECOND]
    objective = prepared(model, tmp_path, records, objective="flow")
    p, q = 1 / 28, 1 / (1 + 255**3)
    easy, hard = exp(-1 / 2) + 2 * exp(-1), exp(-1) + exp(-2)           # the weights of all targets of either kind
    check(objective, model, records, -easy * log(p) - hard * log(q),
          easy * (p - 1) * log(1 / 3) + hard * (q - 1) * log(1 / 255))


@pytest.mark.parametrize(("given", "strength"), [(None, 0.5), (0.2, 0.2), (0.0, 0.0)])
def test_kl_adds_half_the_divergence_from_the_base_model(given, strength, tmp_path):
    """KL(π₀ ‖ π) has ∂/∂h = p − p₀."""
    model = Line(2, 1 / 3)
    objective = prepared(model, tmp_path, [FIRST, SECOND], objective="kl", penalty_weight=given)
    first = 2 / 3 * log((2 / 3) / (8 / 9)) + 1 / 3 * log((1 / 3) / (1 / 9))
    second = 1 / 4 * log((1 / 4) / (1 / 28)) + 3 / 4 * log((3 / 4) / (27 / 28))
    check(objective, model, [FIRST, SECOND], -log(8 / 9) - log(1 / 28) + strength * (first + second),
          (8 / 9 - 1 + strength * (8 / 9 - 2 / 3)) * log(2) + (1 / 28 - 1 + strength * (1 / 28 - 1 / 4)) * log(1 / 3))


def test_l2_sp_adds_the_squared_shift_for_every_target(tmp_path):
    """λ·(s·B·A)² = 4·λ, with 2·λ·s·B·A = 4·λ as its derivative by W."""
    model = Line(2, 1 / 3)
    objective = prepared(model, tmp_path, [BOTH], objective="l2-sp", penalty_weight=0.3)
    check(objective, model, [BOTH], -log(8 / 9) - log(1 / 28) + 2 * 0.3 * 4,
          (8 / 9 - 1) * log(2) + (1 / 28 - 1) * log(1 / 3) + 2 * 0.3 * 4)


def test_ewc_adds_half_the_shift_weighed_by_the_fisher_for_every_target(tmp_path):
    """A base model with W = 0 has p₀ = 1/2: log p₀ has ∂/∂W = ±x/2 for any label, and of two texts F = (x₁² + x₂²)/4/2.

    (λ/2)·F·(s·B·A)² = 2·λ·F, with λ·F·s·B·A = 2·λ·F as its derivative by W. h = 2·x, so p = o² / (1 + o²).
    """
    model = Line(2, 1 / 3, weight=0.0)
    objective = prepared(model, tmp_path, [BOTH], ObjectiveInputs([FIRST, SECOND]), objective="ewc", penalty_weight=0.3)
    F = (log(2) ** 2 + log(3) ** 2) / 8
    assert objective.fisher["proj"].item() == pytest.approx(F)
    check(objective, model, [BOTH], -log(4 / 5) - log(1 / 10) + 2 * 0.3 * 2 * F,
          (4 / 5 - 1) * log(2) + (1 / 10 - 1) * log(1 / 3) + 2 * 0.3 * 2 * F)


@pytest.mark.parametrize(("ema", "teacher"), [({}, 1 / 4), ({"teacher_ema": 0.5}, 1 / 10)])
def test_onpolicy_pulls_to_the_shown_teacher_in_either_direction(ema, teacher, tmp_path):
    """The student reads 0 and wrote 1, 0; the teacher was shown 1. Student: p = 8/9, then 1/28; teacher: q twice.

    The seed has q = 1/4; with an average of decay 1/2 it has B/2, so W = 2 and q = (1/9) / (1 + 1/9) = 1/10.
    KL(q ‖ p) has ∂/∂h = p − q, KL(p ‖ q) has p·(1 − p)·(log p/(1 − p) − log q/(1 − q)).
    """
    wrote = Example("asked", [0, 1, 0], [False, True, True])
    inputs = ObjectiveInputs(shown=[Example("asked", [0, 1], [False, False])],
                             sample=lambda model, chosen, step: chosen)
    rows = ((8 / 9, log(2)), (1 / 28, log(1 / 3)))

    def apart(p, q):
        return p * log(p / q) + (1 - p) * log((1 - p) / (1 - q))

    model, q = Line(2, 1 / 3), teacher
    objective = prepared(model, tmp_path, [wrote], inputs, objective="onpolicy", **ema)
    check(objective, model, [wrote], sum(apart(q, p) for p, _ in rows), sum((p - q) * x for p, x in rows))
    model = Line(2, 1 / 3)
    objective = prepared(model, tmp_path, [wrote], inputs, objective="onpolicy-reverse", **ema)
    check(objective, model, [wrote], sum(apart(p, q) for p, _ in rows),
          sum(p * (1 - p) * (log(p / (1 - p)) - log(q / (1 - q))) * x for p, x in rows))
    assert lora_layers(model)["proj"].enabled
