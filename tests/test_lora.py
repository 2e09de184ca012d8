"""LoRA: no change at the start, on and off without a copy, exact merge and unmerge, targets by name and pattern."""
import pytest
import torch
from tiny import tiny_llama

from sdft.errors import SdftError
from sdft.model.lora import adapter_off, add_lora, lora_layers, merge, remove_lora, unmerge

TOKENS = torch.arange(3, 23)[None]


def _adapted(dtype=torch.float32, **changes):
    model = tiny_llama().to(dtype)
    add_lora(model, **{"rank": 4, "alpha": 8, **changes})
    generator = torch.Generator().manual_seed(0)
    for layer in lora_layers(model).values():
        layer.lora_B.data.normal_(0, 0.1, generator=generator)
    return model


def test_a_fresh_adapter_changes_nothing_and_only_it_is_trained():
    model = tiny_llama()
    before = model(TOKENS)
    names = add_lora(model, rank=4, targets=("q_proj", "v_proj"))
    assert torch.equal(model(TOKENS), before)
    assert len(names) == 6 and names[0] == "model.layers.0.self_attn.q_proj"
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert trained == [f"{name}.{factor}" for name in names for factor in ("lora_A", "lora_B")]


def test_off_is_the_base_model_and_on_is_not():
    base = tiny_llama()(TOKENS)
    model = _adapted()
    on = model(TOKENS)
    with adapter_off(model):
        assert torch.equal(model(TOKENS), base)
        with adapter_off(model):
            pass
        assert torch.equal(model(TOKENS), base)             # the inner `with` leaves the adapter off
    assert torch.equal(model(TOKENS), on) and not torch.allclose(on, base)


def test_removing_restores_the_base_model_bit_for_bit():
    model = _adapted()
    merge(model)
    remove_lora(model)
    base = tiny_llama()
    assert lora_layers(model) == {}
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), base.state_dict().values(), strict=True))
    assert list(model.state_dict()) == list(base.state_dict())


@pytest.mark.parametrize(("rslora", "scale"), [(False, 8 / 4), (True, 8 / 2)])
def test_merge_computes_the_same_and_unmerge_is_exact(rslora, scale):
    model = _adapted(rslora=rslora)
    layer = next(iter(lora_layers(model).values()))
    assert layer.scale == scale
    before, weight = model(TOKENS), layer.weight.clone()
    report = merge(model)
    torch.testing.assert_close(layer.weight, weight + scale * layer.lora_B @ layer.lora_A)
    torch.testing.assert_close(model(TOKENS), before, atol=1e-5, rtol=1e-4)     # one sum instead of two, in fp32
    assert report["relative"] < 1e-6                                            # fp32 has 24 bits
    with adapter_off(model):
        assert torch.equal(model(TOKENS), tiny_llama()(TOKENS))
    unmerge(model)
    assert torch.equal(layer.weight, weight) and torch.equal(model(TOKENS), before)


def test_the_rounding_of_a_bf16_merge_is_reported():
    model = _adapted(torch.bfloat16)
    exact = {name: layer.weight.double() + layer.delta().double() for name, layer in lora_layers(model).items()}
    report = merge(model)
    errors = [(layer.weight.double() - exact[name]).square().sum() for name, layer in lora_layers(model).items()]
    assert report["rounding_norm"] == pytest.approx(torch.stack(errors).sum().sqrt().item())
    assert 1e-4 < report["relative"] < 1 and 0 < report["changed"] <= 1         # bf16 has 8 bits


def test_dropout_acts_only_in_training():
    model = _adapted(dropout=0.5)
    assert torch.equal(model(TOKENS), model(TOKENS))
    model.train()
    assert not torch.equal(model(TOKENS), model(TOKENS))


@pytest.mark.parametrize(("targets", "count"), [
    (("q_proj",), 3), (("*.mlp.*",), 9), (("model.layers.1.*",), 7), (("model.layers.0.mlp.up_proj", "o_proj"), 4)])
def test_targets_are_names_or_patterns(targets, count):
    assert len(add_lora(tiny_llama(), targets=targets)) == count


def test_the_same_seed_draws_the_same_adapter():
    def first(seed):
        model = tiny_llama()
        add_lora(model, seed=seed)
        return next(iter(lora_layers(model).values())).lora_A

    assert torch.equal(first(1), first(1)) and not torch.equal(first(1), first(2))


def test_impossible_adapters_are_one_line():
    with pytest.raises(SdftError, match=r"'q_porj' names no linear layer \(did you mean q_proj\?\)"):
        add_lora(tiny_llama(), targets=("q_porj",))
    with pytest.raises(SdftError, match="rank of at least 1"):
        add_lora(tiny_llama(), rank=0)
    model = tiny_llama()
    add_lora(model)
    with pytest.raises(SdftError, match="has an adapter already"):
        add_lora(model)
