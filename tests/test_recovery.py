"""How few steps on the base model's own dialogues bring back what was forgotten."""
from __future__ import annotations

import json
import math

import torch
from small_run import save_tiny_model
from tiny_chat import byte_tokenizer, tiny_chat_model

from sdft.cli import main
from sdft.data.chat import encode_example
from sdft.experiment import recovery as module
from sdft.experiment import settings
from sdft.experiment.context import solved_by
from sdft.experiment.recovery import recovery
from sdft.experiment.run import run
from sdft.generation import Sampling
from sdft.model.lora import add_lora, lora_layers
from sdft.studies.collect import numbers
from sdft.tasks import Item, Suite

GREEDY = Sampling(max_new_tokens=4)


def _dialogues(count):
    tokenizer = byte_tokenizer()
    answer = {"role": "assistant", "content": "aaaa"}
    return [encode_example(tokenizer, [{"role": "user", "content": f"Say {index}."}, answer], f"d{index}")
            for index in range(count)]


def _suite(score, count=4):
    items = [Item(f"e{index}", [{"role": "user", "content": f"Tell {index}."}]) for index in range(count)]
    return Suite("elaborate", items, score, "solved", max_new_tokens=4)


def _arm():
    torch.manual_seed(0)
    model = tiny_chat_model().eval()
    add_lora(model, rank=4, targets=("q_proj", "v_proj", "down_proj"), seed=1)
    for layer in lora_layers(model).values():
        layer.lora_B.data.normal_(0, 0.1)
    return model


def _factors(model):
    return {name: (layer.lora_A.detach().clone(), layer.lora_B.detach().clone())
            for name, layer in lora_layers(model).items()}


def _by_hand(model, examples, lr=5e-4):
    """AdamW (β .9, .999, ε 1e-8) on the mean cross-entropy of up to 8 examples, the norm clipped to 1."""
    weights = [factor for layer in lora_layers(model).values() for factor in (layer.lora_A, layer.lora_B)]
    first, second = ([torch.zeros_like(w) for w in weights] for _ in range(2))
    step = 0
    while True:
        step += 1
        losses = []
        for example in examples:
            logits = model(torch.tensor([example.tokens]))[0]
            log_p = logits[:-1].log_softmax(-1).gather(1, torch.tensor(example.tokens[1:])[:, None])[:, 0]
            losses.append(-log_p[torch.tensor(example.mask[1:])])
        gradients = torch.autograd.grad(torch.cat(losses).mean(), weights)
        norm = torch.stack([g.norm() for g in gradients]).norm()
        for w, g, m, v in zip(weights, gradients, first, second, strict=True):
            g = g * min(1.0, 1 / (norm.item() + 1e-6))
            m.mul_(0.9).add_(0.1 * g)
            v.mul_(0.999).add_(0.001 * g * g)
            w.data -= lr * (m / (1 - 0.9 ** step)) / ((v / (1 - 0.999 ** step)).sqrt() + 1e-8)
        yield step


def test_the_first_check_below_ten_percent_is_reported_for_each_k(monkeypatch):
    """Answers are scored by how often they were asked for: F falls whatever the model says."""
    asked = {"times": 0}
    lost = iter([3, 2, 1, 0, 4, 3, 2, 2, 2, 2, 2, 2])      # before; k = 1: 1, 2, 4 steps; k = 3: all seven checks

    def evaluate(model, tokenizer, suites, *given):
        asked["times"] += 1
        count = next(lost)
        return {"elaborate": [{"id": item.id, "score": float(index >= count)}
                              for index, item in enumerate(suites[0].items)]}

    monkeypatch.setattr(module, "evaluate", evaluate)
    result = recovery(_arm(), byte_tokenizer(), _suite(None), _dialogues(5), GREEDY)
    assert result["forgetting"] == 0.75 and result["n"] == 4
    assert result["steps"] == {"k1": 4, "k3": None}         # five dialogues: no k of 10 or 30
    assert [(check["k"], check["step"], check["forgetting"]) for check in result["checks"]] == [
        (1, 1, 0.5), (1, 2, 0.25), (1, 4, 0.0),
        (3, 1, 1.0), (3, 2, 0.75), (3, 4, 0.5), (3, 8, 0.5), (3, 16, 0.5), (3, 32, 0.5), (3, 64, 0.5)]
    assert asked["times"] == 11
    assert dict(numbers({"recovery": result}))["recovery.steps.k1"] == 4


def test_nothing_is_trained_where_nothing_was_forgotten():
    model = _arm()
    result = recovery(model, byte_tokenizer(), _suite(lambda item, output: 1.0), _dialogues(3), GREEDY)
    assert result["steps"] == {"k1": 0, "k3": 0} and result["checks"] == [] and result["forgetting"] == 0


def test_the_arm_is_trained_on_the_first_k_dialogues_and_given_back_unchanged(monkeypatch):
    """Against the same steps by hand, for k = 1 and 3; the second begins with the arm again."""
    seen = []

    def evaluate(model, tokenizer, suites, *given):
        seen.append(_factors(model))
        assert not model.training
        return {"elaborate": [{"id": item.id, "score": 0.0} for item in suites[0].items]}

    monkeypatch.setattr(module, "evaluate", evaluate)
    monkeypatch.setattr(module, "CHECKS", (1, 2, 4))
    model, dialogues = _arm(), _dialogues(3)
    before = _factors(model)
    recovery(model, byte_tokenizer(), _suite(None), dialogues, GREEDY)
    after = _factors(model)
    assert all(torch.equal(a, b) for name in before for a, b in zip(before[name], after[name], strict=True))
    assert all(layer.lora_A.grad is None for layer in lora_layers(model).values())
    for k, checks in ((1, seen[1:4]), (3, seen[4:7])):
        oracle = _arm()
        steps = _by_hand(oracle, dialogues[:k])
        for step, factors in zip((1, 2, 4), checks, strict=True):
            while next(steps) < step:
                pass
            for name, pair in _factors(oracle).items():
                for ours, theirs in zip(factors[name], pair, strict=True):
                    # Each step moves a weight by about lr = 5e-4; fp32 gradients near 0 may differ in their sign.
                    assert (ours - theirs).abs().mean() < 2e-5 and math.isfinite(ours.sum().item())


def test_items_are_the_first_that_the_base_model_solves():
    suite = _suite(None, 5)
    lines = [{"id": f"e{index}", "score": float(index != 1)} for index in (4, 3, 2, 1, 0)]
    assert [item.id for item in solved_by(lines, suite, 2).items] == ["e0", "e2"]


ELABORATE = Suite("elaborate", [Item(f"e{index}", [{"role": "user", "content": f"Describe {index} rivers."}])
                                for index in range(8)],
                  lambda item, output: float(sum(output.encode()) % 2), "solved", max_new_tokens=8)


def test_a_run_and_the_command_agree_and_a_study_has_it_as_a_column(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sdft.experiment.context.elaborate_suite", lambda: ELABORATE)
    monkeypatch.setattr("sdft.tasks.elaborate_suite", lambda: ELABORATE)
    monkeypatch.setattr(module, "CHECKS", (1, 2))
    model = save_tiny_model(tmp_path / "model")
    given = {"model": model, "dtype": "float32", "train_records": 4, "test_records": 2, "rewrite_tokens": 8, "lr": 0.05,
             "elaborate_items": 6, "instruction_items": 0, "general_items": 3, "max_length": 2048, "arms": "sft"}
    config = settings.make_config(None, {**{key: str(value) for key, value in given.items()}, "recovery": "true"})
    folder = run(*config, tmp_path / "run")
    ours = json.loads((folder / "measures.json").read_text())["arms"]["sft"]["recovery"]
    assert json.loads((folder / "measured/sft.recovery.json").read_text())["measures"] == ours
    assert ours["forgetting"] > 0 and set(ours["steps"]) == {"k1", "k3"}
    adapter = (folder / "sft" / "adapter_model.safetensors").read_bytes()
    capsys.readouterr()
    assert main(["measure", "recovery", f"--model={model}", "--dtype=float32", "--adapter", str(folder / "sft"),
                 "--out", str(folder / "eval/base"), "--elaborate_items=6", "--general_items=3"]) == 0
    assert json.loads(capsys.readouterr().out) == ours
    assert (folder / "sft" / "adapter_model.safetensors").read_bytes() == adapter


def test_the_command_refuses_another_suite(tmp_path, capsys):
    model = save_tiny_model(tmp_path / "model")
    assert main(["measure", "recovery", f"--model={model}", f"--tuned={model}", "--suite", "instructions"]) == 1
    assert "leave --suite out" in capsys.readouterr().err
