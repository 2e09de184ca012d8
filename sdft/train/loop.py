"""Fine-tuning, step 3 of the method: minimise an objective over packed examples, step by step, resumable.

    the examples of one optimiser step ─pack→ micro-batches of ≤ micro_tokens
    micro-batch ─objective→ sum over its targets ─÷ targets of the WHOLE step─→ backward: += grad
    grad ─clip→ AdamW ─→ log.jsonl (every step), state.safetensors (every save_every steps)

The loss is therefore the mean over the step's target tokens, however the step is cut into micro-batches.

    from sdft.train import TrainSettings, train
    summary = train(model, examples, TrainSettings(lr=5e-4, epochs=2), Path("runs/mine/sft"))

Run by `sdft train`; measured by benchmarks/training.py and benchmarks/memory.py.
"""
from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from sdft.data.chat import Example
from sdft.errors import Interrupted, SdftError
from sdft.files import Journal
from sdft.model.batches import Batch, fingerprint, may_share, pack_within, trainable
from sdft.model.io.checkpoints import fingerprint as model_fingerprint
from sdft.model.llama import Llama
from sdft.objectives import ObjectiveInputs, check_objective, make_objective
from sdft.objectives.ema_teacher import EmaTeacher
from sdft.objectives.hidden_states import HiddenStates, Objective, Start, cross_entropy
from sdft.progress import progress
from sdft.results import LogLine, TrainingSummary
from sdft.tokenizers.tokenizer import Tokenizer
from sdft.train.deterministic import deterministic
from sdft.train.optimiser import adamw, learning_rate, step_if_finite
from sdft.train.order import hold_out, step_examples, steps_per_epoch
from sdft.train.settings import TrainSettings
from sdft.train.signals import StopRequest
from sdft.train.state import NAME, describe, load_state, open_log, save_state
from sdft.train.weights import trained_weights


def gradient(model: Llama, batches: Sequence[Batch], objective: Objective, checkpoint: bool = False) -> Tensor:
    """Add to .grad the gradient of the objective's mean per target over all batches; return that mean (0-d)."""
    targets = sum(batch.targets for batch in batches)
    total = torch.zeros((), device=model.device)
    for batch in batches:
        batch = batch.to(model.device)
        loss = objective(batch, HiddenStates(model, batch, checkpoint)) / targets
        loss.backward()
        total += loss.detach()
    return total


def train(model: Llama, examples: Sequence[Example], settings: TrainSettings, folder: Path | None = None,
          validation: Sequence[Example] = (), base_name: str = "", tokenizer: Tokenizer | None = None,
          inputs: ObjectiveInputs = ObjectiveInputs(), watch: Callable[[LogLine], None] | None = None,
          continued: bool = False) -> TrainingSummary:
    """Train `model` in place and leave the trained adapter on it; return a summary of the run.

    Writes to `folder`: log.jsonl, state.safetensors, and adapter_model.safetensors with adapter_config.json (method
    lora) or model.safetensors with config.json and the tokenizer's files (method full). Where the folder holds a state
    of the same run, training resumes from it; the result is bit for bit that of an uninterrupted run (same machine,
    same number of threads; on a GPU only with `deterministic`, otherwise it differs by rounding). Without a folder
    nothing is written. Raises SdftError for a state of another run, a loss that is not finite, and Ctrl-C or SIGTERM
    (after saving).

    `watch` is called with the log line of every step but the last, while the model is in eval mode. It must not change
    the model. Steps that run again after an interruption are watched again.

    continued: train the adapter that the model has further, instead of a fresh one. It is expected to be of the
    settings' shape; steps and learning rate begin again, and `delta_norm` is its whole distance from the base model.
    """
    folder, settings = None if folder is None else Path(folder), settings.resolved(model.device)
    check_objective(settings)
    longest = min(settings.max_length, model.config.context_length)
    kept, left_out = trainable(examples, longest)
    for reason, count in left_out.items():
        print(f"skipped {count} of {len(examples)} records: {reason}", file=sys.stderr)
    examples, held = ((kept, trainable(validation, longest)[0]) if validation
                      else hold_out(kept, settings.validation, settings.seed))
    data = fingerprint([*examples, *held, *inputs.base_text, *inputs.shown])
    about = describe(settings, data, model_fingerprint(model)) | {"sampling": inputs.sampling}
    trained = trained_weights(model, settings, continued)
    parameters = trained.parameters
    optimiser = adamw(parameters, settings)
    teacher = EmaTeacher(model, parameters, settings.teacher_ema)
    objective = make_objective(Start(model, examples, settings, folder, teacher, inputs))
    done = load_state(folder, about, parameters, optimiser, teacher.tensors)
    trained.publish()
    save = partial(save_state, folder, about=about, parameters=parameters, optimiser=optimiser, teacher=teacher.tensors)
    share = may_share(model.device, settings.lora_dropout)
    per_epoch = steps_per_epoch(examples, settings.batch_size)
    total = settings.steps or per_epoch * settings.epochs
    bar = progress(total=total, desc="train", unit="step")
    bar.update(done)
    model.train()
    with torch.random.fork_rng(), open_log(folder, done) as log, StopRequest() as stop, bar:
        for step in range(done, total):
            started = time.perf_counter()
            chosen = step_examples(examples, step, settings.batch_size, settings.seed)
            batches = pack_within(_targets(model, chosen, step, inputs), settings.micro_tokens, share)
            torch.manual_seed(settings.seed * 1_000_003 + step)         # dropout: by step, so that it can be resumed
            lr = learning_rate(step, total, settings)

            with deterministic(settings.deterministic):
                loss = gradient(model, batches, objective, settings.gradient_checkpointing)
            norm = torch.nn.utils.clip_grad_norm_(parameters.values(), settings.max_grad_norm or math.inf)
            for group in optimiser.param_groups:
                group["lr"] = lr
            step_if_finite(optimiser, torch.stack((loss, norm)))
            optimiser.zero_grad()
            trained.publish()
            loss, norm, shift = torch.stack((loss, norm, trained.delta_norm())).tolist()    # the step's only wait
            if not math.isfinite(loss + norm):
                save(step)
                raise _not_finite(step, loss, norm, batches, folder)
            teacher.follow()

            seconds = time.perf_counter() - started
            tokens = sum(sum(batch.lengths) for batch in batches)
            line: LogLine = {
                "step": step + 1, "epoch": round((step + 1) / per_epoch, 4), "loss": loss, "lr": lr, "grad_norm": norm,
                "delta_norm": shift, "tokens": tokens,
                "target_tokens": sum(batch.targets for batch in batches),
                "tokens_per_second": round(tokens / seconds, 1), "seconds": round(seconds, 4)}
            if not math.isfinite(shift):
                raise SdftError(f"step {step + 1}: the update left weights that are not finite: train again "
                                f"{'' if folder is None else 'in another folder '}with a lower lr or weight_decay")
            if held and (step + 1) % per_epoch == 0:
                line["validation_loss"] = evaluate(model, held, settings.micro_tokens)
            log.append(line)
            if watch is not None and step + 1 < total:
                model.eval()
                watch(line)                                             # before the state: a saved step was watched
                model.train()
            asked = stop.asked                                          # once: it may come between the two uses
            if (step + 1) % settings.save_every == 0 or step + 1 == total or asked:
                save(step + 1)
            done = step + 1
            bar.set_postfix_str(f"loss {loss:.3f}")
            bar.update()
            if asked:
                break
    if stop.asked:
        saved = "" if folder is None else f", saved in {folder / NAME}: run the same command again to resume"
        raise Interrupted(f"stopped after step {done} of {total}{saved}")
    model.eval()
    if folder is not None:
        trained.save(folder, base_name, tokenizer)
    return _summary(log, len(examples), left_out)


def _targets(model: Llama, chosen: list[Example], step: int, inputs: ObjectiveInputs) -> list[Example]:
    """The examples of a step; on-policy objectives replace their answers with the model's own, sampled now."""
    if inputs.sample is None:
        return chosen
    model.eval()
    sampled = inputs.sample(model, chosen, step)
    model.train()
    return sampled


@torch.no_grad()
def evaluate(model: Llama, examples: Sequence[Example], limit: int) -> float:
    """Mean negative log-likelihood per target token of `examples`, in nats, without dropout."""
    was_training = model.training
    model.eval()
    total, targets = torch.zeros((), device=model.device), 0
    for batch in pack_within(examples, limit, may_share(model.device)):
        batch = batch.to(model.device)
        total += cross_entropy(batch, HiddenStates(model, batch))
        targets += batch.targets
    model.train(was_training)
    return total.item() / targets


def _not_finite(step: int, loss: float, norm: float, batches: Sequence[Batch], folder: Path | None) -> SdftError:
    ids = ", ".join(name for batch in batches for name in batch.ids)
    kept = "" if folder is None else f"; the state after step {step} is kept in {folder / NAME}"
    return SdftError(f"step {step + 1}: expected a finite loss, got loss {loss} with gradient norm {norm} on the "
                     f"records {ids}{kept}: check these records, or train again "
                     f"{'' if folder is None else 'in another folder '}with a lower lr")


def _summary(log: Journal, records: int, left_out: dict[str, int]) -> TrainingSummary:
    lines = cast(list[LogLine], log.read())
    last = lines[-1]
    return {"records": records, "steps": last["step"], "epochs": last["epoch"],
            "tokens": sum(line["tokens"] for line in lines),
            "target_tokens": sum(line["target_tokens"] for line in lines),
            "seconds": round(sum(line["seconds"] for line in lines), 2), "left_out": left_out,
            "loss": last["loss"], "validation_loss": last.get("validation_loss"), "delta_norm": last["delta_norm"]}
