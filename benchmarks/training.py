"""Training speed of sdft and of transformers + peft, on the same steps in the same process.

    python benchmarks/training.py                                  # the built-in passages
    python benchmarks/training.py --task gsm8k --data FOLDER       # FOLDER holds gsm8k_train.json

Both sides train a rank-8 adapter on q_proj and v_proj of a frozen model with AdamW, 8 records a step, in bf16, or in
fp32 on a processor without instructions for bf16. Each step is taken by both sides in alternating order, so that a
slower minute of the machine affects both. The ratio is the median over the steps.

Tokens are counted without padding, and once each, although sdft computes a shared prefix only once and the other side
computes padding. The share of the peak counts only the products that a step needs: every frozen matrix forward and once
backward, the head at the targets, and causal attention. The peak of a machine can change threefold within minutes, so
it is measured before and after every step, and a step is compared with the mean of the two.
"""
from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import torch

import sdft
from sdft.data.chat import Example, training_example
from sdft.data.templates import get_template
from sdft.experiment.plan import matmul_peak
from sdft.model.batches import may_share, pack, pack_within
from sdft.model.io.checkpoints import as_dtype
from sdft.model.io.fetch import resolve
from sdft.model.llama import Llama
from sdft.objectives import Objective, cross_entropy
from sdft.tasks import load_task
from sdft.train import TrainSettings
from sdft.train.loop import gradient
from sdft.train.optimiser import adamw
from sdft.train.settings import MICRO_TOKENS
from sdft.train.weights import trained_weights

MODEL = "smollm2-135m"
BATCH = 8
CLIP = 1.0
PEAK_SIZE = 2048       # the peak is that of a product of square matrices of this size


class Ours:
    """sdft's step, as in `sdft.train.loop`."""

    def __init__(self, model: Llama, settings: TrainSettings, objective: Objective = cross_entropy):
        self.model, self.settings, self.objective = model, settings.resolved(model.device), objective
        self.parameters = trained_weights(model, settings).parameters
        self.optimiser = adamw(self.parameters, settings)
        model.train()

    def step(self, examples: Sequence[Example]) -> float:
        """One optimiser step on `examples`; returns the loss per target token."""
        batches = pack_within(examples, self.settings.micro_tokens, may_share(self.model.device))
        loss = gradient(self.model, batches, self.objective, self.settings.gradient_checkpointing)
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), CLIP)
        self.optimiser.step()
        self.optimiser.zero_grad()
        return loss.item()


class Peer:
    """transformers' model with peft's LoRA: a padded batch, the model's own loss, torch's AdamW."""

    def __init__(self, settings: TrainSettings, attention: str = "sdpa", device: str = "cpu"):
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        base = AutoModelForCausalLM.from_pretrained(resolve(MODEL), dtype=as_dtype("auto", device),
                                                    attn_implementation=attention).to(device)
        self.model = get_peft_model(base, LoraConfig(r=settings.lora_rank, lora_alpha=settings.lora_alpha,
                                                     task_type="CAUSAL_LM", target_modules=list(settings.lora_targets)))
        self.model.train()
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(self.parameters, lr=settings.lr, weight_decay=settings.weight_decay)

    def step(self, examples: Sequence[Example]) -> float:
        """One optimiser step on `examples`; returns the loss per target token."""
        shape = len(examples), max(len(example.tokens) for example in examples)
        tokens, attention, labels = torch.zeros(shape).long(), torch.zeros(shape).long(), torch.full(shape, -100)
        for b, example in enumerate(examples):
            length = len(example.tokens)
            tokens[b, :length] = torch.tensor(example.tokens)
            attention[b, :length] = 1
            labels[b, :length] = torch.where(torch.tensor(example.mask), tokens[b, :length], -100)
        tokens, attention, labels = (x.to(self.model.device) for x in (tokens, attention, labels))
        loss = self.model(input_ids=tokens, attention_mask=attention, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, CLIP)
        self.optimiser.step()
        self.optimiser.zero_grad()
        return loss.item()


def workload(tokenizer, task_name: str, data: Path | None, records: int) -> list[list[Example]]:
    """The steps: BATCH records each, the task's first ones with its training template and its original answers."""
    task = load_task(task_name, data=data, train_records=records)
    template = get_template(task.train_template)
    examples = [training_example(tokenizer, record, template) for record in task.train[:records]]
    return [examples[start : start + BATCH] for start in range(0, len(examples), BATCH)]


def needed_flops(model: Llama, examples: Sequence[Example], share: bool) -> float:
    """Floating-point operations of the matrix products that a step needs, forward and backward, with frozen weights.

    After its attention, the last layer is needed only at the targets. With `share`, a shared prefix counts once.
    """
    config = model.config
    width = config.num_attention_heads * config.head_dim
    frozen = sum(weight.numel() for name, weight in model.named_parameters()
                 if weight.dim() == 2 and "layers." in name and "lora" not in name)
    last = model.model.layers[-1]
    after_attention = sum(layer.weight.numel() for layer in (last.self_attn.o_proj, last.mlp.gate_proj,
                                                             last.mlp.up_proj, last.mlp.down_proj))
    batch = pack(examples, share)
    pairs = sum(position + 1 for position in batch.positions.tolist())      # of a query and a key that it attends to
    attention = 6 * 2 * pairs * width * config.num_hidden_layers                    # 2 products forward, 4 backward
    N, n = len(batch.tokens), batch.targets
    return 4 * (frozen * N - after_attention * (N - n) + config.vocab_size * config.hidden_size * n) + attention


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="passages", help="Task of the records (default: passages).")
    parser.add_argument("--data", type=Path, help="Folder with the task's files.")
    parser.add_argument("--records", type=int, default=128, help="Number of records (default: 128).")
    parser.add_argument("--micro-tokens", type=int, default=MICRO_TOKENS,
                        help="Maximum tokens per micro-batch of sdft.")
    parser.add_argument("--checkpointing", action="store_true", help="Recompute the layers in sdft's backward pass.")
    parser.add_argument("--attention", default="sdpa", help="Attention of transformers: sdpa (its default) or eager.")
    parser.add_argument("--cpu-time", action="store_true",
                        help="Count processor time, for a busy machine. Set OMP_NUM_THREADS=1: idle threads count too.")
    args = parser.parse_args()

    clock = time.process_time if args.cpu_time else time.perf_counter
    settings = TrainSettings(micro_tokens=args.micro_tokens, gradient_checkpointing=args.checkpointing)
    model, tokenizer = sdft.load(MODEL)
    steps = workload(tokenizer, args.task, args.data, args.records)
    sides = {"sdft": Ours(model, settings), "transformers + peft": Peer(settings, args.attention)}
    for side in sides.values():
        side.step(steps[0])                                                         # warm up
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    losses: dict[str, list[float]] = {name: [] for name in sides}
    peaks: dict[str, list[float]] = {name: [] for name in sides}                    # the peak around each step
    before = matmul_peak(as_dtype("auto"), size=PEAK_SIZE, clock=clock)
    for number, examples in enumerate(steps):
        for name in list(sides)[:: 1 if number % 2 else -1]:
            started = clock()
            losses[name].append(sides[name].step(examples))
            seconds[name].append(clock() - started)
            after = matmul_peak(as_dtype("auto"), size=PEAK_SIZE, clock=clock)
            peaks[name].append((before + after) / 2)
            before = after

    tokens = [sum(len(example.tokens) for example in examples) for examples in steps]
    peak = statistics.median(chain(*peaks.values()))
    flops = {name: [needed_flops(model, examples, share=name == "sdft") for examples in steps] for name in sides}
    result = {"benchmark": "training", "task": args.task, "records": sum(map(len, steps)), "tokens": sum(tokens),
              "threads": torch.get_num_threads(), "micro_tokens": args.micro_tokens,
              "checkpointing": args.checkpointing, "clock": clock.__name__, "dtype": str(model.dtype),
              "attention": args.attention, "peak_gflops": round(peak / 1e9)}
    print(f"{args.task}: {result['records']} records, {sum(tokens)} tokens, {len(steps)} steps of {BATCH}; "
          f"products in {model.dtype} reach {peak / 1e9:.0f} GFLOP/s\n")
    print(f"{'':24}{'tokens/s':>10}{'share of peak':>15}{'mean loss':>11}")
    for name in sides:
        speed = statistics.median(n / s for n, s in zip(tokens, seconds[name], strict=True))
        share = statistics.median(
            f / s / p for f, s, p in zip(flops[name], seconds[name], peaks[name], strict=True))
        print(f"{name:24}{speed:>10.0f}{share:>14.0%}{statistics.mean(losses[name]):>11.3f}")
        result[name] = {"tokens_per_second": round(speed, 1), "share_of_peak": round(share, 3)}
    ratio = statistics.median(theirs / ours for ours, theirs in zip(*seconds.values(), strict=True))
    print(f"\nratio (median over steps): {ratio:.2f}")
    print(json.dumps(result | {"ratio": round(ratio, 3)}))


if __name__ == "__main__":
    main()
