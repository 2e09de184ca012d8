"""The method as functions: nothing is written, and the model is never left half trained."""
import pytest
import torch
from small_run import save_tiny_model

import sdft
from sdft.data.chat import CHAT_FORMATS
from sdft.experiment.settings import ModelConfig
from sdft.model.lora import lora_layers

RECORDS = [sdft.Record(f"r{number}", f"What is {number} and 1?", f"{number + 1}") for number in range(4)]
QUICK = sdft.TrainSettings(epochs=1, lora_rank=2)


@pytest.fixture
def loaded(tmp_path):
    return sdft.load(save_tiny_model(tmp_path / "tiny"), dtype="float32")


def weights(model):
    return {name: weight.clone() for name, weight in model.named_parameters()}


def test_self_distill_is_rewrite_choose_finetune_and_writes_nothing(loaded, tmp_path, monkeypatch):
    model, tokenizer = loaded
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    sampling = sdft.Sampling(max_new_tokens=4)
    adapter = sdft.self_distill(model, tokenizer, RECORDS, sampling=sampling, settings=QUICK)
    once = {name: factor.detach().clone() for name, factor in adapter.parameters.items()}
    assert float(adapter.delta_norm()) > 0 and not list(folder.iterdir())
    sdft.remove_lora(model)
    distilled = sdft.choose(RECORDS, sdft.rewrite(model, tokenizer, RECORDS, sampling=sampling))
    again = sdft.finetune(model, tokenizer, distilled, QUICK)
    assert all(torch.equal(once[name], factor) for name, factor in again.parameters.items())


def test_self_distill_refuses_a_model_with_an_adapter_before_it_rewrites(loaded, monkeypatch):
    model, tokenizer = loaded
    sdft.add_lora(model, rank=2)
    monkeypatch.setattr("sdft.method.rewrite", None)                    # calling it would fail otherwise
    with pytest.raises(sdft.SdftError, match="expected the base model, got one with an adapter: call sdft.remove_lora"):
        sdft.self_distill(model, tokenizer, RECORDS)


@pytest.mark.parametrize("settings", [{"objective": "ewc"}, {"objective": "onpolicy"}, {"lr": 1e6}, {"max_length": 2}])
def test_after_a_failed_finetune_the_model_is_the_base_model_and_can_be_trained(loaded, settings):
    model, tokenizer = loaded
    before = weights(model)
    try:
        sdft.finetune(model, tokenizer, RECORDS, sdft.TrainSettings(epochs=8, lora_rank=2, **settings))
        sdft.remove_lora(model)                                         # a large lr need not fail on every machine
    except sdft.SdftError as error:
        assert "folder" not in str(error)                               # there is none
    assert not lora_layers(model) and not model.training
    assert all(torch.equal(before[name], weight) for name, weight in weights(model).items())
    sdft.finetune(model, tokenizer, RECORDS, QUICK)


def test_an_adapter_of_the_user_stays_where_finetune_refuses_the_model(loaded):
    model, tokenizer = loaded
    names = sdft.add_lora(model, rank=2)
    with pytest.raises(sdft.SdftError, match="has an adapter already: call sdft.remove_lora"):
        sdft.finetune(model, tokenizer, RECORDS, QUICK)
    assert list(lora_layers(model)) == names


def test_token_ids_of_any_integer_type_are_the_same_prompt(loaded):
    model, tokenizer = loaded
    plain, tensor = sdft.generate(model, tokenizer, [[72, 101, 102], [72, *torch.tensor([101, 102])]], max_new_tokens=4)
    assert plain.tokens == tensor.tokens


def test_the_help_names_every_chat_format():
    text = ModelConfig.__dataclass_fields__["chat"].metadata["help"]
    assert set(CHAT_FORMATS) <= set(text.replace(",", " ").replace(";", " ").split())
