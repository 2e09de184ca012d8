"""The real 135M chat model, loaded once a session and handed out as the seed: without an adapter, nothing frozen."""
import pytest
import torch

torch.set_num_threads(2)


@pytest.fixture(scope="session")
def smollm2():
    """Folder of the real model; fetched on first use."""
    from sdft.model.io.fetch import fetch

    return fetch("smollm2-135m")


@pytest.fixture(scope="session")
def _loaded(smollm2):
    import sdft

    models = {}

    def load(dtype):
        if dtype not in models:
            models[dtype] = sdft.load(smollm2, dtype)
        return models[dtype]

    return load


def _lend(loaded):
    """Lend the model, and take away what the test has put on it."""
    from sdft.model.lora import remove_lora

    yield loaded
    remove_lora(loaded[0])
    loaded[0].requires_grad_(True).zero_grad()
    loaded[0].eval()


@pytest.fixture
def smollm2_bf16(_loaded):
    """(model, tokenizer) of the real model in bf16."""
    yield from _lend(_loaded("bfloat16"))


@pytest.fixture
def smollm2_fp32(_loaded):
    """(model, tokenizer) of the real model in fp32."""
    yield from _lend(_loaded("float32"))
