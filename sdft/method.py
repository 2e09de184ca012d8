"""Self-distillation fine-tuning (arXiv 2402.13669, section 3) as one function: rewrite, choose, fine-tune.

    import sdft
    model, tokenizer = sdft.load("smollm2-135m")
    adapter = sdft.self_distill(model, tokenizer, sdft.read_records("mine.jsonl"))

It works in memory. `sdft run` takes the same three steps with a run folder, baselines and measures: experiment/run.py.
"""
from __future__ import annotations

from collections.abc import Sequence

from sdft.data.chat import training_example
from sdft.data.records import Record
from sdft.data.templates import get_template
from sdft.distill.filters import Check, Limits, accept, choose
from sdft.distill.rewriting import rewrite
from sdft.errors import SdftError
from sdft.generation import Sampling
from sdft.model.llama import Llama
from sdft.model.lora import lora_layers, remove_lora
from sdft.tokenizers.tokenizer import Tokenizer
from sdft.train.loop import train
from sdft.train.settings import TrainSettings
from sdft.train.weights import Adapter


def self_distill(model: Llama, tokenizer: Tokenizer, records: Sequence[Record], *, distill_template: str = "using",
                 train_template: str = "plain", check: Check = accept, limits: Limits = Limits(),
                 sampling: Sampling = Sampling(), settings: TrainSettings = TrainSettings(),
                 chat: str | None = None) -> Adapter:
    """Fine-tune `model`, the base model f_θ, on its own rewrites of the reference answers of `records`.

    `check(record, text)` returns the reason to reject a rewrite, or None; the default does not check correctness.
    Empty, unfinished and tell-tale rewrites, and those beyond `limits`, are always rejected. The adapter stays on
    `model`; the function returns it.
    """
    if lora_layers(model):
        raise SdftError("expected the base model, got one with an adapter: call sdft.remove_lora(model) first")

    # 1. Rewrite: the base model reads instruction x and reference answer y, and writes ỹ ~ f_θ(· | c_distill, x, y).
    rewrites = rewrite(model, tokenizer, records, distill_template, sampling, chat=chat)

    # 2. Choose: the target is ỹ where every check accepts it, else y.
    distilled = choose(records, rewrites, check, limits)

    # 3. Fine-tune: LoRA minimises −log f_θ(target | c_train, x).
    return finetune(model, tokenizer, distilled, settings, train_template, chat)


def finetune(model: Llama, tokenizer: Tokenizer, records: Sequence[Record], settings: TrainSettings = TrainSettings(),
             template: str = "plain", chat: str | None = None) -> Adapter:
    """Train a LoRA adapter on the responses of `records`; leave it on `model` and return it.

    `template` is the prompt of training, `chat` the chat format (None: the model's own). `adapter.save(folder)` writes
    PEFT's format. Raises SdftError for records that cannot be trained on, and for method = full. Where training fails
    or is interrupted, the model is the base model again.
    """
    if settings.method != "lora":
        raise SdftError(f"finetune trains an adapter: expected method = lora, got {settings.method}; call "
                        "sdft.train.train to train every weight")
    form = get_template(template)
    examples = [training_example(tokenizer, record, form, chat) for record in records]
    adapted = bool(lora_layers(model))                  # then training refuses the model, and leaves it as it is
    try:
        train(model, examples, settings)
    except BaseException:
        if not adapted:
            remove_lora(model)
            model.eval()
        raise
    return Adapter(model)
