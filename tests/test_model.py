"""The mathematics against transformers: every family, logits and gradients, in fp32."""
import pytest
import torch
from tiny import FAMILIES, LLAMA3, SIZES, copy_of, hf_config, hf_model, tiny_llama

from sdft.errors import SdftError
from sdft.kernels.attention import DocumentAttention
from sdft.model.config import LlamaConfig

# Both compute in fp32 but add in another order; logits are of size 1 to 10, so 1e-4 is some tens of roundings.
TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_equal_transformers(family):
    hf = hf_model(family)
    model = copy_of(hf)
    tokens = torch.randint(0, 97, (2, 40), generator=torch.Generator().manual_seed(1))
    theirs, ours = hf(tokens).logits, model(tokens)
    torch.testing.assert_close(ours, theirs, **TOLERANCE)
    pull = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(2))
    (theirs * pull).mean().backward()
    (ours * pull).mean().backward()
    gradients = dict(hf.named_parameters())
    assert set(dict(model.named_parameters())) == set(gradients)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, gradients[name].grad, atol=1e-5, rtol=1e-3, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_written_configuration_reads_back_here_and_in_transformers(family):
    from transformers import AutoConfig

    config = LlamaConfig.from_hf(hf_config(family).to_dict())
    assert LlamaConfig.from_hf(config.to_hf()) == config
    values = config.to_hf()
    assert LlamaConfig.from_hf(AutoConfig.for_model(**values).to_dict()) == config


def test_packed_documents_do_not_see_each_other():
    model = tiny_llama()
    a, b = torch.arange(5, 15), torch.arange(30, 47)
    positions = torch.cat([torch.arange(10), torch.arange(17)])
    packed = model.head(model.hidden(torch.cat([a, b]), positions, DocumentAttention([10, 17])))
    torch.testing.assert_close(packed[:10], model(a[None])[0], atol=1e-5, rtol=1e-5)      # fp32 sums in another order
    torch.testing.assert_close(packed[10:], model(b[None])[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("checkpoint", [False, True])
def test_the_last_layer_may_compute_only_the_rows_asked_for(checkpoint):
    """The hidden states of the rows, and every gradient, equal those of the whole computation."""
    model, rows = tiny_llama().double(), torch.tensor([3, 9, 10, 26])
    tokens, positions = torch.arange(5, 32), torch.cat([torch.arange(10), torch.arange(17)])
    results = []
    for hidden in (lambda attend: model.hidden(tokens, positions, attend)[rows],
                   lambda attend: model.hidden(tokens, positions, attend, rows, checkpoint)):
        model.zero_grad()
        states = hidden(DocumentAttention([10, 17]))
        states.square().sum().backward()
        gradients = [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]
        results.append([states.detach(), *gradients])
    for whole, part in zip(*results, strict=True):
        torch.testing.assert_close(part, whole)


def test_recomputing_activations_changes_no_gradient():
    model = tiny_llama()
    tokens, positions = torch.arange(5, 25), torch.arange(20)
    gradients = []
    for checkpoint in (False, True):
        model.zero_grad()
        model.hidden(tokens, positions, DocumentAttention([20]), checkpoint=checkpoint).square().sum().backward()
        gradients.append([weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None])
    assert all(torch.equal(x, y) for x, y in zip(*gradients, strict=True))


@pytest.mark.parametrize(("changes", "message"), [
    ({"model_type": "gpt_neox"}, "gpt_neox is not supported; expected one of llama, mistral, qwen2, qwen3"),
    ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "RoPE scaling 'yarn' is not supported"),
    ({"rope_scaling": {"type": "linear"}}, "needs factor"),
    ({"rope_scaling": {"type": "linear", "factor": "x"}}, "expected factor to be a positive number, got 'x'"),
    ({"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}, "low_freq_factor to be less than high_freq_factor"),
    ({"rope_parameters": 8}, "expected the RoPE scaling to be an object, got 8"),
    ({"rope_theta": -1}, "expected rope_theta to be a positive number, got -1"),
    ({"num_hidden_layers": 10**30}, "expected num_hidden_layers to be a positive whole number, got 1000"),
    ({"head_dim": 7}, "an even head_dim, got 4, 2 and 7"),
    ({"model_type": None}, "a model without model_type is not supported"),
    ({"model_type": "qwen2", "use_sliding_window": True}, "use_sliding_window is not supported"),
    ({"num_key_value_heads": 3}, "multiple of num_key_value_heads"),
    ({"hidden_size": None}, "expected hidden_size to be a positive whole number, got None"),
    ({"quantization_config": {}}, "quantised weights are not supported"),
])
def test_an_unsupported_variant_is_refused_by_name(changes, message):
    with pytest.raises(SdftError, match=message):
        LlamaConfig.from_hf({**SIZES, "model_type": "llama", **changes})


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_missing_value_has_transformers_default(family):
    from transformers import AutoConfig

    values = {**SIZES, "model_type": family}
    theirs = AutoConfig.for_model(**values).to_dict()
    assert LlamaConfig.from_hf(values) == LlamaConfig.from_hf(theirs)


def test_a_sliding_window_bounds_the_context():
    config = LlamaConfig.from_hf(hf_config("mistral").to_dict())
    assert config.context_length == 64
    unset = LlamaConfig.from_hf({**SIZES, "model_type": "mistral", "max_position_embeddings": 32768})
    assert unset.context_length == 4096                                    # transformers' default
    none = LlamaConfig.from_hf({**SIZES, "model_type": "mistral", "sliding_window": None})
    assert none.context_length == 128
