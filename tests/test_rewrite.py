"""Rewriting into a journal: nothing done twice, nothing lost, nothing mixed up with another run."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_chat import byte_tokenizer, records, tiny_chat_model

import sdft.distill.rewriting as module
from sdft.data.records import Record
from sdft.data.templates import get_template
from sdft.distill import rewrite
from sdft.distill.rewriting import distill_prompt, shuffle_references
from sdft.errors import SdftError
from sdft.generation import Sampling
from sdft.model.io.checkpoints import fingerprint
from sdft.model.lora import adapter_off, add_lora

SAMPLED = Sampling(max_new_tokens=12, temperature=1.0, seed=5)
USING = get_template("using")


def run(folder: Path, chosen=None, model=None, sampling=SAMPLED, template=USING, batch_size=4, chat=None):
    return rewrite(model or tiny_chat_model(), byte_tokenizer(), records(12) if chosen is None else chosen,
                   template, sampling, batch_size, chat, folder / "rewrites.jsonl")


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "rewrites.jsonl").read_text().splitlines()]


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """The ids for which an answer was generated."""
    ids: list[str] = []
    stream = module.stream

    def spy(model, tokenizer, requests, *rest):
        requests = list(requests)
        ids.extend(request.id for request in requests)
        return stream(model, tokenizer, requests, *rest)

    monkeypatch.setattr(module, "stream", spy)
    return ids


def test_the_base_model_sees_question_and_reference_answer_and_begins_with_the_prefix():
    tokenizer, record = byte_tokenizer(), Record("a", "What is 2 + 2?", "It is 4.")
    for name in ("using", "gsm8k_distill"):
        text = tokenizer.decode(distill_prompt(tokenizer, record, get_template(name)), skip_special=False)
        assert text.index("What is 2 + 2?") < text.index("It is 4.")
        assert text.endswith(get_template(name).prefix.rstrip() or "assistant\n")


def test_of_a_conversation_the_last_turn_is_rewritten_and_the_earlier_ones_are_history():
    tokenizer = byte_tokenizer()
    record = Record("a", "And Sweden?", "Stockholm", history=(("Capital of Norway?", "Oslo"),))
    text = tokenizer.decode(distill_prompt(tokenizer, record, USING), skip_special=False)
    first, last = text.index("Capital of Norway?"), text.index("Below are an instruction")
    assert first < text.index("Oslo") < last < text.index("And Sweden?") < text.index("Stockholm")


def test_shuffled_references_are_those_of_others_whatever_the_order():
    chosen = [Record(f"r{i}", f"question {i}", f"answer {i % 3}") for i in range(9)]
    shuffled = {record.id: record for record in shuffle_references(chosen)}
    assert sorted(shuffled) == [f"r{i}" for i in range(9)]
    for record in chosen:
        assert shuffled[record.id] == replace(record, response=shuffled[record.id].response)
        assert shuffled[record.id].response != record.response
    assert {record.id: record for record in shuffle_references(chosen[::-1])} == shuffled
    same = [replace(record, response="one") for record in chosen]
    assert shuffle_references(same) == same and shuffle_references([]) == []


def test_a_shuffled_template_shows_another_records_answer(tmp_path, monkeypatch):
    chosen, seen = records(4), {}

    def spy(model, tokenizer, requests, *rest):
        seen.update({request.id: tokenizer.decode(request.tokens) for request in requests})
        return iter(())

    monkeypatch.setattr(module, "stream", spy)
    with pytest.raises(KeyError):           # nothing was written
        run(tmp_path, chosen, template=get_template("using_shuffled"))
    other = {record.id: record.response for record in shuffle_references(chosen)}
    assert all(record.instruction in seen[record.id] and other[record.id] in seen[record.id]
               and f"Answer:\n{record.response}" not in seen[record.id] for record in chosen)


def test_rewrites_are_in_the_records_order_and_in_the_journal(tmp_path):
    rewrites = run(tmp_path)
    assert [rewrite.id for rewrite in rewrites] == [f"r{i}" for i in range(12)]
    by_id = {line["id"]: line for line in lines(tmp_path)}
    for made in rewrites:
        line = by_id[made.id]
        assert (line["text"], line["tokens"], line["finish"], line["seed"]) == (made.text, made.tokens, made.finish, 5)
        assert byte_tokenizer().decode(made.tokens) == made.text
    assert len({tuple(made.tokens) for made in rewrites}) == 12


def test_without_a_journal_the_rewrites_are_the_same_and_no_file_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert rewrite(tiny_chat_model(), byte_tokenizer(), records(12), sampling=SAMPLED) == run(tmp_path / "journal")
    assert [path.name for path in tmp_path.iterdir()] == ["journal"]


def test_a_journal_is_resumed_and_nothing_is_done_again(tmp_path, asked):
    whole = run(tmp_path / "whole")
    run(tmp_path / "parts", records(5))
    torn = tmp_path / "parts" / "rewrites.jsonl"
    with open(torn, "a") as file:
        file.write('{"id": "r7", "te')                             # a line torn by a kill
    before = torn.read_text().splitlines()[:5]
    del asked[:]
    assert run(tmp_path / "parts") == whole
    assert sorted(asked) == sorted(f"r{i}" for i in range(5, 12))
    assert torn.read_text().splitlines()[:5] == before and len(lines(tmp_path / "parts")) == 12
    del asked[:]
    assert run(tmp_path / "parts", batch_size=3) == whole and not asked


KILLED = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[2])
from test_rewrite import SAMPLED, records, replace, run
torch.set_num_threads(1)
run(Path(sys.argv[1]), records(40), sampling=replace(SAMPLED, max_new_tokens=60), batch_size=2)
"""


def test_a_killed_run_resumes_without_losing_or_redoing_a_record(tmp_path, asked):
    killed = tmp_path / "killed"
    journal = killed / "rewrites.jsonl"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(killed), str(Path(__file__).parent)],
                               stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 60
    while not journal.exists() or journal.read_bytes().count(b"\n") < 6:
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read().decode()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stderr.close()
    whole_lines = journal.read_bytes()[: journal.read_bytes().rfind(b"\n") + 1]
    done = [json.loads(line)["id"] for line in whole_lines.splitlines()]
    assert 6 <= len(done) < 40                                     # it was killed in the middle

    rewrites = run(killed, records(40), sampling=replace(SAMPLED, max_new_tokens=60))
    assert journal.read_bytes().startswith(whole_lines)
    assert sorted(asked + done) == sorted(f"r{i}" for i in range(40))
    assert sorted(line["id"] for line in lines(killed)) == sorted(f"r{i}" for i in range(40))
    uninterrupted = run(tmp_path / "whole", records(40), sampling=replace(SAMPLED, max_new_tokens=60))
    assert rewrites == uninterrupted


def test_a_record_too_long_for_the_context_is_reported_and_the_others_are_rewritten(tmp_path, capsys):
    long = Record("long", "word " * 200, "yes")
    rewrites = run(tmp_path, [*records(3), long])
    assert [rewrite.id for rewrite in rewrites] == ["r0", "r1", "r2"]
    reported = capsys.readouterr().err
    assert "rewrite: skipped 1 of 4, whose prompts fill the model's context of 512 tokens (long)" in reported


def test_a_journal_of_another_model_template_or_sampling_is_refused_and_kept(tmp_path):
    run(tmp_path)
    before = (tmp_path / "rewrites.jsonl").read_bytes()
    refusals = {
        r"sampling.temperature was 1.0, is 0.5": {"sampling": replace(SAMPLED, temperature=0.5)},
        r"sampling.seed was 5, is 6": {"sampling": replace(SAMPLED, seed=6)},
        r"template.name was using, is refer": {"template": get_template("refer")},
        r"model was \w{16}, is \w{16}": {"model": tiny_chat_model(seed=1)},
        r"chat was \w+, is zephyr": {"chat": "zephyr"},
    }
    for message, changed in refusals.items():
        with pytest.raises(SdftError, match=message):
            run(tmp_path, **changed)
    assert (tmp_path / "rewrites.jsonl").read_bytes() == before


def test_a_journal_of_other_records_is_refused(tmp_path):
    run(tmp_path)
    changed = [replace(records(1)[0], response="another answer")]
    with pytest.raises(SdftError, match="record r0 had another prompt when it was rewritten"):
        run(tmp_path, changed)


def test_a_journal_without_its_settings_is_refused(tmp_path):
    run(tmp_path)
    (tmp_path / "rewrites.settings.json").unlink()
    with pytest.raises(SdftError, match="expected rewrites.settings.json next to it"):
        run(tmp_path)


def test_the_fingerprint_tells_models_and_adapters_apart():
    model = tiny_chat_model()
    bare = fingerprint(model)
    assert fingerprint(tiny_chat_model()) == bare != fingerprint(tiny_chat_model(seed=1))
    add_lora(model, targets=("q_proj",))
    adapted = fingerprint(model)
    assert adapted != bare
    with adapter_off(model):
        assert fingerprint(model) == bare
    next(iter(model.model.layers)).self_attn.q_proj.lora_B.data += 1
    assert fingerprint(model) not in (bare, adapted)


@pytest.mark.parametrize("line", ['{"text": "no id"}', '{"id": 3}', '["a"]', "null"])
def test_a_line_without_an_id_is_reported_with_its_number(tmp_path, line):
    run(tmp_path, records(1))
    path = tmp_path / "rewrites.jsonl"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(SdftError, match=r'rewrites.jsonl, line 2: expected an object with the text "id", got'):
        run(tmp_path, records(1))
