"""A training step on device "cuda" without a GPU: under FakeTensorMode a host sync and a wrong device raise.

This shows that the code is written for a GPU, not how fast it is.
"""
from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from training_parts import HF_CONFIG, examples

from sdft.model.config import LlamaConfig
from sdft.model.llama import Llama
from sdft.train import TrainSettings
from sdft.train.batches import pack_within
from sdft.train.loop import gradient
from sdft.train.objectives import cross_entropy
from sdft.train.optimiser import adamw
from sdft.train.weights import Adapter, FullWeights


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("method", [Adapter, FullWeights])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_step_needs_no_host_sync_and_stays_on_its_device(method, dtype, checkpoint):
    settings = TrainSettings(rank=2)
    batches = pack_within(examples(6), 40)
    assert len(batches) > 1
    with FakeTensorMode(allow_non_fake_inputs=True):
        with torch.device("cuda"):
            model = Llama(LlamaConfig.from_hf(HF_CONFIG, "the tests"))
        model = model.to(dtype)
        trained = method(model, settings)
        optimiser = adamw(trained.parameters, settings)
        loss = gradient(model, batches, cross_entropy, checkpoint)
        norm = torch.nn.utils.clip_grad_norm_(trained.parameters.values(), 1.0)
        optimiser.step()
        trained.publish()
        assert {x.device.type for x in (loss, norm, trained.delta_norm(), *trained.parameters.values())} == {"cuda"}
        with pytest.raises(DataDependentOutputException):           # the mode does raise at a host sync
            loss.item()
