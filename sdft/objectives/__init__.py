"""The objectives room: the losses that training minimises, cross-entropy and those of the baselines.

It imports kernels, data and model; train calls it. Start with hidden_states.py (the interface, and cross-entropy), then
weighted.py (dft, stm, flow), penalties.py (kl, l2-sp, ewc) and onpolicy.py. Each docstring states its loss and source.

    sdft train --data mine.jsonl --objective kl --penalty_weight 0.5 --out runs/own/kl
"""
from __future__ import annotations

from collections.abc import Callable
from functools import partial

from sdft.errors import SdftError, nearest
from sdft.objectives.hidden_states import HiddenStates, Objective, ObjectiveInputs, Settings, Start, cross_entropy
from sdft.objectives.onpolicy import onpolicy
from sdft.objectives.penalties import EWC, KL, L2SP
from sdft.objectives.weighted import dft, flow, stm

__all__ = ["HiddenStates", "Objective", "ObjectiveInputs", "Settings", "Start", "check_objective", "cross_entropy",
           "make_objective"]

OBJECTIVES: dict[str, Objective] = {"cross_entropy": cross_entropy, "dft": dft}       # need no preparation
PREPARED: dict[str, Callable[[Start], Objective]] = {                                   # prepared before training
    "stm": stm, "flow": flow,
    "kl": lambda start: KL(start.strength(0.5)),                    # λ as arXiv 2509.03934 uses it, on prompt tokens
    "l2-sp": lambda start: L2SP(start.strength(1.0)),               # adds 1 nat where ‖ΔW‖ is 1
    "ewc": EWC.prepare,
    "onpolicy": onpolicy, "onpolicy-reverse": partial(onpolicy, reverse=True)}
NEEDS_ADAPTER = ("kl", "l2-sp", "ewc", "onpolicy", "onpolicy-reverse")


def check_objective(settings: Settings) -> None:
    """Raise SdftError for an objective that does not exist, or that full fine-tuning cannot have."""
    name, known = settings.objective, [*OBJECTIVES, *PREPARED]
    if name not in known:
        raise SdftError(f"objective: expected one of {', '.join(known)}, got {name!r}{nearest(name, known)}")
    if name in NEEDS_ADAPTER and settings.method == "full":
        raise SdftError(f"objective {name} compares with the base model, which is the model with its adapter off: "
                        "expected method = lora, got full")


def make_objective(start: Start) -> Objective:
    """The objective that the settings name, ready for the first step; the name is checked by `check_objective`."""
    name = start.settings.objective
    return OBJECTIVES[name] if name in OBJECTIVES else PREPARED[name](start)
