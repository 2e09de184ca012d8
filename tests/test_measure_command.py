"""`sdft measure` of a tuned model and its base model: it prints what the functions of the measures return."""
import json
import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_run import options, save_tiny_model
from tiny import tiny_llama
from tiny_chat import VOCABULARY, byte_tokenizer

import sdft.experiment.context
import sdft.tasks
from sdft.cli import main
from sdft.data.chat import encode_example
from sdft.measure.abilities import evaluate
from sdft.measure.outputs.activations import activation_drift
from sdft.measure.outputs.drift import base_answers, base_view, drift, reverse_drift
from sdft.measure.outputs.gap import gap
from sdft.measure.outputs.texts import compare_texts
from sdft.measure.weights.compare import compare_checkpoints
from sdft.measure.weights.fisher import fisher_shift
from sdft.measure.weights.interpolation import loss_along
from sdft.measure.weights.shift import module_measures
from sdft.model import load
from sdft.model.io.adapters import load_adapter
from sdft.model.io.checkpoints import save_checkpoint
from sdft.model.lora import adapter_off
from sdft.objectives.fisher import fisher
from sdft.tasks import general_suite, instruction_suite, load_task

ITEMS = 2


def short(suite):
    """Two of its prompts, answered in 12 tokens: the tiny model never ends an answer by itself."""
    return replace(suite, items=suite.items[:ITEMS], max_new_tokens=12)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "data.jsonl"
    path.write_text("".join(json.dumps({"instruction": f"Say {i}.", "response": f"{i} it is"}) + "\n"
                            for i in range(6)))
    return path


@pytest.fixture(scope="module")
def tuned(model, data, tmp_path_factory):
    """Method → the folder that `sdft train` made."""
    folder = tmp_path_factory.mktemp("tuned")
    for method in ("lora", "full"):
        assert main(["train", "--model", str(model), "--dtype=float32", "--data", str(data), "--method", method,
                     "--lr=3e-2", "--epochs=8", "--out", str(folder / method)]) == 0
    return {method: folder / method for method in ("lora", "full")}


@pytest.fixture
def measured(model, capsys, tmp_path, monkeypatch):
    """Run `sdft measure` on short suites, in a folder of its own; return what it printed."""
    for name, suite in (("general_suite", general_suite()), ("instruction_suite", instruction_suite())):
        for module in (sdft.tasks, sdft.experiment.context):
            monkeypatch.setattr(module, name, partial(short, suite))

    def run(what, *more):
        capsys.readouterr()
        assert main(["measure", what, "--model", str(model), "--dtype=float32", f"--general_items={ITEMS}",
                     "--out", str(tmp_path / "eval" / "base"), *map(str, more)]) == 0
        return json.loads(capsys.readouterr().out)
    return run


class Direct:
    """The same two models, and their answers, without the command."""

    def __init__(self, model, folder, method, suite, out):
        self.model, self.tokenizer = load(model, "float32")
        self.base = None
        if method == "lora":
            load_adapter(self.model, folder)
        else:
            self.base, self.model = self.model, load(folder, "float32")[0]
        self.before = self.base or self.model
        with adapter_off(self.before):
            self.base_rows = self.answers(self.before, suite, out / "a")
        self.own_rows = self.answers(self.model, suite, out / "b")
        self.texts, self.own = (base_answers(self.tokenizer, suite, rows) for rows in (self.base_rows, self.own_rows))

    def answers(self, model, suite, folder):
        return evaluate(model, self.tokenizer, [suite], folder)[suite.name]


def direct(model, tuned, method, tmp_path, suite=None):
    return Direct(model, tuned[method], method, short(suite or general_suite()), tmp_path / "direct")


def close(value):
    """The same JSON, its numbers as near as other packing leaves them."""
    if isinstance(value, dict):
        return {key: close(each) for key, each in value.items()}
    if isinstance(value, list):
        return [close(each) for each in value]
    return pytest.approx(value, rel=1e-5, abs=1e-9) if isinstance(value, float) else value


OPTION = {"lora": "--adapter", "full": "--tuned"}


@pytest.mark.parametrize("method", OPTION)
def test_measures_on_answers_are_those_of_the_functions(model, tuned, measured, tmp_path, method):
    pair, of = direct(model, tuned, method, tmp_path), (OPTION[method], tuned[method])
    found = measured("drift", *of)
    assert found == close({**drift(pair.model, base_view(pair.before, pair.texts)),
                           "reverse": reverse_drift(pair.model, pair.own, pair.base)})
    assert found["kl"] > 0 and found["reverse"]["kl"] > 0 and found["n"] == ITEMS
    assert sorted(path.name for path in (tmp_path / "eval").iterdir()) == sorted(["base", method])
    assert measured("activations", *of) == close(activation_drift(pair.model, pair.texts, pair.base))
    texts = measured("texts", *of, "--own", tmp_path / "own")
    assert texts == close(compare_texts(pair.own_rows, pair.base_rows)) and texts["rouge_l"] < 1
    assert (tmp_path / "own" / "general.jsonl").is_file()
    felt = measured("fisher", *of)
    assert felt == close(fisher_shift(pair.model, fisher(pair.before, pair.texts), pair.base) | {"n": ITEMS})
    assert felt["total"] > 0 and len(felt["modules"]) == {"lora": 2, "full": 7}[method]     # q, v; all of a layer


@pytest.mark.parametrize("method", OPTION)
def test_measures_of_weights_and_targets_are_those_of_the_functions(model, tuned, data, measured, tmp_path, method):
    pair, of = direct(model, tuned, method, tmp_path), (OPTION[method], tuned[method])
    shift = measured("shift", *of, "--spectra=v_proj")
    assert shift == close(module_measures(pair.model, pair.base, ["v_proj"])) and shift["total"] > 0
    targets = [encode_example(pair.tokenizer, [{"role": "user", "content": f"Say {i}."},
                                               {"role": "assistant", "content": f"{i} it is"}], str(i))
               for i in range(6)]
    along = measured("interpolation", *of, "--data", data)
    assert along == close(loss_along(pair.model, targets, base=pair.base)) and along[4]["nll"] < along[0]["nll"]
    assert measured("gap", *of, "--data", data)["nll"] == pytest.approx(gap(pair.model, targets)["nll"], rel=1e-5)
    assert measured("gap", "--data", data)["nll"] == along[0]["nll"]


@pytest.mark.parametrize("method", OPTION)
def test_another_suite_s_prompts(model, tuned, measured, tmp_path, monkeypatch, method):
    task = load_task("passages", test_records=ITEMS)
    task = replace(task, suites=[short(task.suites[0])])
    monkeypatch.setattr("sdft.experiment.settings.load_task", lambda *_: task)
    pair = direct(model, tuned, method, tmp_path, task.suites[0])
    found = measured("drift", OPTION[method], tuned[method], "--suite=passages")
    assert found["reverse"] == close(reverse_drift(pair.model, pair.own, pair.base))
    assert found["kl"] == pytest.approx(drift(pair.model, base_view(pair.before, pair.texts))["kl"], rel=1e-5)
    assert (tmp_path / "eval" / "base" / "passages.jsonl").is_file()
    assert measured("drift", OPTION[method], tuned[method], "--suite=instructions", "--instruction_items=1")["n"] == 1


def test_an_arm_of_a_run_is_measured_again_from_its_own_answers(model, tmp_path, capsys):
    """Every weight was trained; the seed's and the arm's answers stand in the run folder, and none is given anew."""
    run = tmp_path / "run"
    assert main(["run", *options(model), "--method=full", "--lr=1e-2", "--arms=sft", "--out", str(run)]) == 0
    arm = json.loads((run / "measures.json").read_text())["arms"]["sft"]
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*.jsonl")}

    def again(what, *more):
        capsys.readouterr()
        assert main(["measure", what, "--model", str(model), "--dtype=float32", "--tuned", str(run / "sft"),
                     "--out", str(run / "eval" / "base"), *more]) == 0
        return json.loads(capsys.readouterr().out)

    general, task = ("--general_items=2",), ("--suite=passages", "--train_records=4", "--test_records=3")
    found = again("drift", *general)
    assert found == close({key: arm["general"][key] for key in found}) and found["kl"] > 0
    assert again("drift", *task) == close(arm["on_task"])
    assert again("activations", *general) == close(arm["activations"])
    texts = again("texts", *general)
    assert texts == close({key: arm["general"][key] for key in texts})
    assert again("shift")["total"] == pytest.approx(arm["shift"]["total"])
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*.jsonl")}


def test_a_small_change_of_a_whole_model_is_not_lost_in_rounding(model, measured, tmp_path):
    """1e-5 of each weight, of which two bf16 models show nothing or hundreds of times as much."""
    other = shutil.copytree(model, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    save_file({name: weight * (1 + 1e-5) for name, weight in weights.items()}, other / "model.safetensors")
    found = measured("shift", "--tuned", other, "--dtype=bfloat16")
    assert found["total"] == pytest.approx(compare_checkpoints(model, other)["total"])
    assert found["relative"] == pytest.approx(1e-5, rel=0.05)                   # fp32 rounds at 6e-8 of a weight
    (seed, tokenizer), suite = load(model, "bfloat16"), short(general_suite())
    F = fisher(seed, base_answers(tokenizer, suite, evaluate(seed, tokenizer, [suite], tmp_path)[suite.name]))
    expected = sum((F[name].double() * (1e-5 * load_file(model / "model.safetensors")[f"{name}.weight"]) ** 2).sum()
                   for name in F)
    felt = measured("fisher", "--tuned", other, "--dtype=bfloat16")
    assert felt["total"] == pytest.approx(expected.item(), rel=0.05)


def test_what_cannot_be_set_against_each_other_is_refused(model, tuned, tmp_path, capsys):
    bent, renamed = tmp_path / "bent", shutil.copytree(model, tmp_path / "renamed")
    save_checkpoint(tiny_llama("smollm2", vocab_size=VOCABULARY, intermediate_size=40, num_hidden_layers=1),
                    byte_tokenizer(), bent)
    spec = (renamed / "tokenizer.json").read_text()
    (renamed / "tokenizer.json").write_text(spec.replace('"A": 65', '"A": 66').replace('"B": 66', '"B": 65'))
    full, lora = tuned["full"], tuned["lora"]
    for arguments, message in (
        (["drift"], "measure drift needs an adapter or a whole tuned model to compare with the base model; name one "),
        (["texts", "--adapter", lora, "--tuned", full], "takes one tuned model; got both --adapter and --tuned"),
        (["gap", "--adapter", lora, "--tuned", full], "takes one tuned model; got both"),
        (["weights", model, full, "--tuned", full], "measure weights takes its folders alone; leave --tuned out"),
        (["shift", "--tuned", lora], "expected a whole model, found an adapter; name it with --adapter"),
        (["shift", "--adapter", full], "expected an adapter with adapter_config.json"),
        (["drift", "--tuned", bent], "but model.layers.0.mlp.down_proj.weight is (32, 40) here and (32, 48) there"),
        (["texts", "--tuned", renamed], "but token 65 is 'B' here and 'A' there; name its own base model with --model"),
        (["drift", "--tuned", full, "--suite=passage"], "--suite: expected one of general, elaborate, instructions, "
                                                        "passages, got 'passage' (did you mean passages?)"),
        (["drift", "--tuned", full, "--suite=instructions", "--instruction_items=0"], "expected prompts, got none"),
        (["drift", "--tuned", tmp_path / "none"], "no such model folder"),
    ):
        capsys.readouterr()
        assert main(["measure", *map(str, arguments), "--model", str(model), "--out", str(tmp_path / "eval")]) == 1
        error = capsys.readouterr().err
        assert error.startswith("sdft: ") and message in error and error.count("\n") == 1, error
    assert not (tmp_path / "eval").exists()


def test_a_seed_that_says_nothing_is_told(model, tuned, tmp_path, capsys, monkeypatch):
    def nothing(model, tokenizer, suites, *_):
        return {suites[0].name: [{"id": item.id, "output": "", "finish": "stop", "tokens": 0}
                                 for item in suites[0].items]}

    monkeypatch.setattr("sdft.measure.abilities.evaluate", nothing)
    assert main(["measure", "activations", "--model", str(model), "--tuned", str(tuned["full"]), "--general_items=2",
                 "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "suite general: expected answers of the base model to measure on, but all 2 are empty" in error


def test_two_tunings_of_a_seed_are_set_against_each_other(model, tuned, tmp_path, capsys):
    merged = tmp_path / "merged"
    assert main(["merge", str(tuned["lora"]), f"--model={model}", "--dtype=float32", f"--out={merged}"]) == 0
    capsys.readouterr()
    assert main(["measure", "between", *map(str, (model, tuned["full"], merged)), "--spectra=q_proj"]) == 0
    found = json.loads(capsys.readouterr().out)
    seed, *others = (load_file(folder / "model.safetensors") for folder in (model, tuned["full"], merged))
    one, two = (torch.cat([(other[name].double() - seed[name].double()).flatten() for name in seed])
                for other in others)
    assert found["cosine"] == pytest.approx((one @ two / (one.norm() * two.norm())).item(), rel=1e-9)
    assert 0 < found["cosine"] < 1 and found["left_cosine"] > 0
    assert main(["measure", "between", str(model), str(merged)]) == 1
    assert "measure between needs 3 folders; got 2" in capsys.readouterr().err
