"""The report is one page that needs no network and shows exactly what the run folder holds."""
import json
import re

import numpy as np
import pytest

from sdft.errors import SdftError
from sdft.files import Journal, write_json, write_text
from sdft.report import write_report
from sdft.report.run import read_run
from sdft.report.tables import findings, result_table, verdict


def _rows(path, rows):
    with Journal(path) as journal:
        for row in rows:
            journal.append(row)


def _arm(mean, kl, total, rng, trained=True):
    suite = {"metric": "accuracy", "mean": mean, "low": mean - .05, "high": mean + .04, "n": 8, "tokens_mean": 20.0,
             "by_kind": {"life": mean, "cargo": 0.5}}
    general = {"kl": kl, "kl_low": kl * .8, "kl_high": kl * 1.2, "top1": 1 - kl, "tokens": 300, "length_mean": 30.5,
               "lengths": rng.integers(5, 60, 6).tolist(), "rouge_l": 0.5, "n": 6,
               "by_position": [{"first": first, "last": last, "kl": kl * factor, "tokens": 100}
                               for first, last, factor in ((1, 1, 10), (2, 8, 2), (9, 60, 0.5))]}
    arm = {"suites": {"passages": suite, "instructions": dict(suite)}, "general": general}
    if trained:
        for row in arm["suites"].values():
            row["against_seed"] = {"difference": 0.1, "low": 0.02, "high": 0.2}
        modules = [{"name": f"layers.{i}.{kind}", "layer": i, "kind": kind, "norm": .1, "relative": .01 * (i + 1)}
                   for i in range(4) for kind in ("q_proj", "v_proj")]
        arm["shift"] = {"total": total, "relative": 0.0123, "modules": modules}
        arm["training"] = {"records": 10, "steps": 12, "epochs": 2, "tokens": 1234, "target_tokens": 321,
                           "seconds": 5.0, "left_out": {"too long": 1}}
    return arm


@pytest.fixture
def folder(tmp_path):
    """A small finished run folder, written by hand to the contract."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "a-run"
    ids = [f"r{i}" for i in range(10)]
    rewritten = set(ids[:7])
    gap = {name: {"nll": nll, "perplexity": float(np.exp(nll)), "tokens": 50,
                  "records": [{"id": key, "nll": nll + i / 10, "tokens": 5} for i, key in enumerate(ids)]}
           for name, nll in (("original", 5.33), ("distilled", 0.6))}
    write_json(folder / "measures.json", {
        "arms": {"seed": _arm(.83, 0.0, 0, rng, False), "sft": _arm(.97, .147, 4.55, rng),
                 "sdft": _arm(.89, .1, 4.24, rng)},
        "gap": gap,
        "audit": {"records": 10, "accepted": 7, "rejected": 3, "reasons": {"unfinished": 2, "answer missing": 1},
                  "nominal_ratio": 1.0, "effective_share": .7, "tokens_original": 50, "tokens_distilled": 400,
                  "examples": {"accepted": [], "rejected": []}}})
    write_json(folder / "summary.json", {"seconds": {"rewrite": 12.0}})
    write_json(folder / "environment.json", {"torch": "2.13.0", "threads": 2})
    write_text(folder / "config.toml", '[train]\nlr = 0.0005\n')
    _rows(folder / "rewrites.jsonl",
          [{"id": key, "text": f"rewrite of {key} <b>", "tokens": 9, "finish": "stop"} for key in ids])
    _rows(folder / "distilled.jsonl", [
        {"id": key, "instruction": f"question {key}", "reference": "ref", "response": "resp",
         "source": "rewrite" if key in rewritten else "original", "reason": "" if key in rewritten else "unfinished"}
        for key in ids])
    for arm in ("seed", "sft", "sdft"):
        _rows(folder / "eval" / arm / "general.jsonl",
              [{"id": f"g{i}", "prompt": f"prompt {i}", "output": f"<script>{arm} says {i}", "tokens": 3}
               for i in range(6)])
        if arm != "seed":
            _rows(folder / arm / "log.jsonl",
                  [{"step": i + 1, "loss": 3 / (i + 1), "delta_norm": i / 3} for i in range(12)])
    return folder


def test_the_page_is_one_file_without_network_or_script(folder):
    page = write_report(folder).read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "<script" not in page and "http" not in re.sub(r"base64,[^\"]*", "", page)
    assert page.count("<img") == 6


def test_the_page_shows_the_numbers_of_the_run(folder):
    page = write_report(folder).read_text()
    for text in ("97.0 (92–101)", "0.147", "4.24", "5.33 → 0.60", "70.0 % of the", "unfinished",
                 "rewrite of r0 &lt;b&gt;", "&lt;script&gt;sdft says 5", "lr = 0.0005", "1 too long"):
        assert text in page, text
    assert "| sft | 97.0 (92–101) |" in (folder / "report.md").read_text()


def test_every_arm_has_a_row_and_missing_numbers_are_dashes(folder):
    table = result_table(read_run(folder))
    assert [row[0] for row in table.rows] == ["seed", "sft", "sdft"]
    assert all(len(row) == len(table.head) for row in table.rows)
    assert table.rows[0][-2:] == ["–", "–"]


def test_conclusions_follow_the_intervals(folder):
    assert verdict({"difference": .1, "low": .02, "high": .2}).startswith("gained +10.0 points")
    assert verdict({"difference": -.1, "low": -.2, "high": -.02}).startswith("lost -10.0 points")
    assert verdict({"difference": .1, "low": -.02, "high": .2}).startswith("no difference detected")
    told = " ".join(findings(read_run(folder)))
    assert "nearer to the seed: 5.33 → 0.60" in told and "0.68 times as far under sdft" in told
    assert "the intervals overlap" in told          # 0.118–0.176 against 0.080–0.120
    assert "first token sft drifted 1.47 nats and sdft 1.00; from token 9 on, 0.073 and 0.050" in told


def test_a_run_without_optional_parts_still_reports(folder):
    measures = json.loads((folder / "measures.json").read_text())
    del measures["gap"], measures["audit"]
    measures["arms"] = {arm: measures["arms"][arm] for arm in ("seed", "sft")}
    write_json(folder / "measures.json", measures)
    for name in ("rewrites.jsonl", "distilled.jsonl", "summary.json"):
        (folder / name).unlink()
    assert "sft" in write_report(folder).read_text()


def test_a_folder_without_a_finished_run_is_one_line(tmp_path):
    with pytest.raises(SdftError, match="expected a finished run with measures.json"):
        write_report(tmp_path)


def test_measures_without_arms_are_one_line(folder):
    for arms in ({}, {"seed": {}}):
        write_json(folder / "measures.json", {"arms": arms})
        with pytest.raises(SdftError, match="measures.json: expected the suites that each arm answered"):
            write_report(folder)
