"""The weights that training changes: an adapter on frozen weights, or every weight. Both offer the loop four things.

    parameters      name → the fp32 tensor that the optimiser changes
    publish()       updates the model after an optimiser step
    delta_norm()    ‖ΔW‖_F over all trained weights: their distance from the base model
    save(folder, …) writes files that PEFT or transformers load
"""
from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from sdft.errors import SdftError
from sdft.model.io.adapters import save_adapter
from sdft.model.io.checkpoints import save_checkpoint
from sdft.model.llama import Llama
from sdft.model.lora import add_lora, lora_layers, match_targets, shift_norm
from sdft.tokenizers.tokenizer import Tokenizer
from sdft.train.settings import TrainSettings


class Adapter:
    """The LoRA factors A (R, D) and B (O, R) of every adapted layer of `model`; the base weights are frozen."""

    def __init__(self, model: Llama):
        self.model = model
        self.layers = lora_layers(model)
        self.parameters = {f"{name}.{factor}": getattr(layer, factor)
                           for name, layer in self.layers.items() for factor in ("lora_A", "lora_B")}

    def publish(self) -> None:
        """Do nothing: the optimiser has already changed the factors in the model."""

    def delta_norm(self) -> Tensor:
        return shift_norm(self.layers)

    def save(self, folder: Path | str, base_name: str = "", tokenizer: Tokenizer | None = None) -> None:
        """Write adapter_model.safetensors and adapter_config.json; the tokenizer is the base model's."""
        save_adapter(self.model, folder, base_name)


class FullWeights:
    """Every weight, trained in fp32. A half-precision model computes with a rounded copy of the fp32 masters.

    Each backward pass adds its gradients to those of the masters in fp32, and frees its own.
    """

    def __init__(self, model: Llama):
        self.model = model
        self.base = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        self.parameters: dict[str, Tensor] = {}
        for name, weight in model.named_parameters():
            weight.requires_grad_(True)
            master = weight if weight.dtype == torch.float32 else weight.detach().float()
            if master is not weight:
                weight.register_post_accumulate_grad_hook(partial(_hand_over, master))
            self.parameters[name] = master

    @torch.no_grad()
    def publish(self) -> None:
        weights = dict(self.model.named_parameters())
        torch._foreach_copy_(list(weights.values()), [self.parameters[name] for name in weights])      # rounded

    def delta_norm(self) -> Tensor:
        norms = [(master.detach() - self.base[name]).norm() for name, master in self.parameters.items()]
        return torch.stack(norms).norm()                                            # √Σ ‖W − W_base‖²_F

    def save(self, folder: Path, base_name: str, tokenizer: Tokenizer | None) -> None:
        """Write model.safetensors in the model's dtype, config.json and the tokenizer's files, where there is one."""
        save_checkpoint(self.model, tokenizer, folder)


def _hand_over(master: Tensor, weight: Tensor) -> None:
    gradient = cast(Tensor, weight.grad).float()
    master.grad = gradient if master.grad is None else master.grad.add_(gradient)
    weight.grad = None


Trained = Adapter | FullWeights


def trained_weights(model: Llama, settings: TrainSettings, continued: bool = False) -> Trained:
    """Prepare `model` for training: a fresh adapter, or if `continued` its own (method lora), or every weight (full).

    Raises SdftError where the adapter to continue is missing, or is not of the shape that the settings ask for.
    """
    if settings.method == "full":
        return FullWeights(model)
    if continued:
        _check_adapter(model, settings)
        return Adapter(model)
    add_lora(model, rank=settings.lora_rank, alpha=settings.lora_alpha, targets=settings.lora_targets,
             dropout=settings.lora_dropout, rslora=settings.rslora, seed=settings.seed)
    return Adapter(model)


def _check_adapter(model: Llama, settings: TrainSettings) -> None:
    asked = settings.lora_rank, settings.lora_alpha, settings.lora_dropout, settings.rslora
    layers = lora_layers(model)
    found = {(layer.rank, layer.alpha, layer.dropout, layer.rslora) for layer in layers.values()}
    if list(layers) != match_targets(model, settings.lora_targets) or found != {asked}:
        raise SdftError("expected the adapter to continue to have the lora_rank, lora_alpha, lora_dropout, rslora and "
                        f"lora_targets of the settings, {asked} on {', '.join(settings.lora_targets)}; got "
                        f"{', '.join(map(str, found)) or 'no adapter'} on {len(layers)} layers; load the adapter that "
                        "these settings trained")
