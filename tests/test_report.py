"""The report is one page that needs no network and shows exactly what the run folder holds."""
import json
import re
from html import escape

import numpy as np
import pytest

from sdft.errors import SdftError
from sdft.files import Journal, write_json, write_text
from sdft.report import write_report
from sdft.report.figures import draw_figures
from sdft.report.findings import findings
from sdft.report.run import read_run
from sdft.report.suite_tables import difference_table
from sdft.report.tables import (
    between_table,
    drift_table,
    gap_table,
    nats,
    paired_table,
    result_table,
    similarity_table,
    verdict,
    weights_table,
)


def _rows(path, rows):
    with Journal(path) as journal:
        for row in rows:
            journal.append(row)


def _arm(mean, kl, total, rng, trained=True):
    suite = {"metric": "accuracy", "mean": mean, "low": mean - .05, "high": mean + .04, "n": 8, "tokens_mean": 20.0,
             "solved_by_base": 0, "lost": 0, "gained": 0,
             "by_kind": {kind: {"mean": score, "n": 4, "solved_by_base": 0, "lost": 0, "gained": 0}
                         for kind, score in (("life", mean), ("cargo", 0.5))}}
    general = {"kl": kl, "kl_low": kl * .8, "kl_high": kl * 1.2, "top1": 1 - kl, "tokens": 300, "length_mean": 30.5,
               "lengths": rng.integers(5, 60, 6).tolist(), "rouge_l": 0.5, "n": 6,
               "by_position": [{"first": first, "last": last, "kl": kl * factor, "tokens": 100}
                               for first, last, factor in ((1, 1, 10), (2, 8, 2), (9, 60, 0.5))]}
    arm = {"suites": {"passages": suite, "instructions": dict(suite)}, "general": general}
    if trained:
        for row in arm["suites"].values():
            row["against_base"] = {"difference": 0.1, "low": 0.02, "high": 0.2}
        modules = [{"name": f"layers.{i}.{kind}", "layer": i, "kind": kind, "norm": .1, "relative": .01 * (i + 1)}
                   for i in range(4) for kind in ("q_proj", "v_proj")]
        arm["shift"] = {"total": total, "relative": 0.0123, "modules": modules}
        arm["training"] = {"records": 10, "steps": 12, "epochs": 2, "tokens": 1234, "target_tokens": 321,
                           "seconds": 5.0, "left_out": {"too long": 1}}
    return arm


@pytest.fixture
def folder(tmp_path):
    """A small finished run folder, written by hand to the contract of a run that has only the first measures."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "a-run"
    ids = [f"r{i}" for i in range(10)]
    rewritten = set(ids[:7])
    gap = {name: {"nll": nll, "perplexity": float(np.exp(nll)), "tokens": 50,
                  "records": [{"id": key, "nll": nll + i / 10, "tokens": 5} for i, key in enumerate(ids)]}
           for name, nll in (("original", 5.33), ("distilled", 0.6))}
    write_json(folder / "measures.json", {
        "arms": {"base": _arm(.83, 0.0, 0, rng, False), "sft": _arm(.97, .147, 4.55, rng),
                 "sdft": _arm(.89, .1, 4.24, rng)},
        "gap": gap,
        "audit": {"records": 10, "accepted": 7, "rejected": 3, "reasons": {"unfinished": 2, "answer missing": 1},
                  "nominal_ratio": 1.0, "effective_share": .7, "tokens_original": 50, "tokens_distilled": 400,
                  "examples": {"accepted": [], "rejected": []}}})
    write_json(folder / "summary.json", {"seconds": {"rewrite": 12.0}})
    write_json(folder / "environment.json", {"format": 3, "torch": "2.13.0", "threads": 2})
    write_text(folder / "config.toml", '[train]\nlr = 0.0005\n')
    _rows(folder / "rewrites.jsonl",
          [{"id": key, "text": f"rewrite of {key} <b>", "tokens": 9, "finish": "stop"} for key in ids])
    _rows(folder / "distilled.jsonl", [
        {"id": key, "instruction": f"question {key}", "reference": "ref", "response": "resp",
         "source": "rewrite" if key in rewritten else "original", "reason": "" if key in rewritten else "unfinished"}
        for key in ids])
    for arm in ("base", "sft", "sdft"):
        _rows(folder / "eval" / arm / "general.jsonl",
              [{"id": f"g{i}", "prompt": f"prompt {i}", "output": f"<script>{arm} says {i}", "tokens": 3}
               for i in range(6)])
        if arm != "base":
            _rows(folder / arm / "log.jsonl",
                  [{"step": i + 1, "loss": 3 / (i + 1), "delta_norm": i / 3} for i in range(12)])
    return folder


@pytest.fixture
def measured(folder):
    """The same run with every measure."""
    measures = json.loads((folder / "measures.json").read_text())
    for number, part in enumerate(measures["gap"].values()):
        part |= {"rank_mean": 41.5, "rank_median": 3.0 - number, "rank0": 0.25, "low": 0.625,
                 "by_position": [{"first": first, "last": last, "nll": 4.0, "tokens": 25}
                                 for first, last in ((1, 1), (2, 8 + number))]}
    pairing = {"n": 7, "nll": 0.6, "nll_with": 5.3, "difference": -4.7, "low": -5.1, "high": -4.2, "tokens": 350,
               "tokens_with": 35, "perplexity": 1.82, "perplexity_with": 200.3, "rank_mean": 3.2,
               "rank_mean_with": 41.0, "low_share": 0.125}
    measures["gap"]["distilled"]["paired"] = {"with": "original", **pairing, "length_matched": {
        **pairing, "difference": -0.2, "low": -0.5, "high": 0.1, "tokens": 35}}
    measures["texts"] = {"rouge_l": 0.31, "bleu": 0.12, "cosine": 0.87, "n": 7}
    measures["token_map"] = [{"id": "r0", "texts": {
        "original": {"pieces": ["4", "<|end|>"], "nll": [7.5, 0.001], "rank": [512, 0]},
        "distilled": {"pieces": ["It", "\n", "is"], "nll": [0.9, 0.92, 3.45], "rank": [0, 1, 17]}}}]
    for arm in ("sft", "sdft"):
        own = measures["arms"][arm]
        drift = {"kl": 0.2, "kl_low": 0.15, "kl_high": 0.25, "tv": 0.1, "tv_low": 0.08, "tv_high": 0.12, "top1": 0.9,
                 "tokens": 90, "n": 6}
        reverse = {**drift, "kl": 0.7, "kl_low": 0.6, "kl_high": 0.8, "n": 5}
        own["general"] |= {**{key: drift[key] for key in ("tv", "tv_low", "tv_high")}, "reverse": reverse, "bleu": 0.2}
        own["on_task"] = {**drift, "kl": 0.35, "reverse": {"tokens": 0, "n": 0}}
        own["activations"] = {"tokens": 1234, "n": 6, "layers": [
            {"layer": i, "relative": 0.1 * i, "cosine": 1 - 0.01 * i, "cka": 1 - 0.02 * i} for i in range(4)]}
        own["interpolation"] = [{"t": t / 4, "nll": 2 - t / 4, "n": 10, "nll_general": 1 + t / 8, "n_general": 6}
                                for t in range(6)]
        own["shift"] |= {"changed_bf16": 0.123, "stable_rank": 2.34, "effective_rank": 5.67, "spectral_shift": 0.00123,
                         "left_cosine": 0.9876, "right_cosine": 0.8765, "intruders": 0.5}
        for module in own["shift"]["modules"]:
            module["spectrum"] = [0.3, 0.2, 0.1]
        own["shift"]["modules"][0]["spectral_shift"] = own["shift"]["modules"][-1]["spectral_shift"] = 0.00123
        own["fisher"] = {"total": 0.0456, "n": 5, "layers": [{"layer": i, "shift": 0.01 * i} for i in range(4)]}
        for row in own["suites"].values():
            row["against_base"] |= {"p": 0.03, "p_holm": 0.12, "n": 8, "test": "McNemar"}
    measures["arms"]["sdft"]["suites"]["passages"]["against_sft"] = {
        "difference": -0.1, "low": -0.2, "high": -0.05, "n": 8, "p": 0.00001, "p_holm": 0.005, "test": "McNemar"}
    measures["between"] = {
        "sft, sdft": {"cosine": 0.31, "left_cosine": 0.42, "right_cosine": None, "norms": [4.5, 4.2]}}
    write_json(folder / "measures.json", measures)
    return folder


def test_the_page_is_one_file_without_network_or_script(measured):
    page = write_report(measured).read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "<script" not in page and "http" not in re.sub(r"base64,[^\"]*", "", page)
    assert page.count("<img") == 12


def test_a_run_that_has_only_the_first_measures_shows_those(folder):
    page = write_report(folder).read_text()
    assert page.count("<img") == 7 and "rank" not in page
    assert "total variation" not in page and "class=legend" not in page


@pytest.mark.parametrize("value, sign, text", [(0.0, "", "0.000"), (0.144, "", "0.144"), (0.0075, "", "0.0075"),
                                               (-0.000384, "+", "-0.00038"), (None, "", "–"),
                                               (float("nan"), "", "nan")])
def test_a_small_kl_shows_two_significant_digits(value, sign, text):
    assert nats(value, sign) == text


def test_the_page_shows_the_numbers_of_the_run(folder):
    page = write_report(folder).read_text()
    for text in ("97.0 (92–101)", "0.147", "4.24", "5.33 nats per token before and 0.60 after",
                 "70.0 % of the targets differ", "unfinished", "rewrite of r0 &lt;b&gt;", "&lt;script&gt;sdft says 5",
                 "lr = 0.0005", "1 too long"):
        assert text in page, text
    assert "| sft | 97.0 (92–101) |" in (folder / "report.md").read_text()


def test_every_arm_has_a_row_and_missing_numbers_are_dashes(folder):
    table = result_table(read_run(folder))
    assert [row[0] for row in table.rows] == ["base", "sft", "sdft"]
    assert all(len(row) == len(table.head) for row in table.rows)
    assert table.rows[0][-2:] == ["–", "–"]


def test_conclusions_follow_the_intervals(folder):
    assert verdict({"difference": .1, "low": .02, "high": .2}).startswith("gained +10.0 points")
    assert verdict({"difference": -.1, "low": -.2, "high": -.02}).startswith("lost -10.0 points")
    assert verdict({"difference": .1, "low": -.02, "high": .2}).startswith("no difference detected")
    text = " ".join(findings(read_run(folder)))
    assert ("closer to the base model: their NLL under the base model is 5.33 nats per token before and 0.60 after"
            in text and "drifted 0.68 times as far with sdft" in text)
    assert "[n = 8]" in text and "Holm" not in text
    assert ("At the first token of an answer, the KL is 1.000 nats with sdft and 1.470 with sft; from token 9 on, "
            "0.050 and 0.073.") in text


@pytest.mark.parametrize(("low", "high", "moved"), [
    (-2, -1, "moved the targets closer to the base model"), (1, 2, "moved the targets away from the base model"),
    (-1, 1, "made no detected difference"), (None, None, "made no detected difference")])
def test_the_gap_moves_where_its_interval_says_so(folder, low, high, moved):
    measures = json.loads((folder / "measures.json").read_text())
    paired = {"n": 4, "difference": 0.5, "low": low, "high": high}
    measures["gap"] = {name: {**measures["gap"]["original"], "nll": 1.2} for name in ("original", "distilled")}
    if low is not None:
        measures["gap"]["distilled"]["paired"] = {**paired, "length_matched": paired}
    write_json(folder / "measures.json", measures)
    assert f"Distillation {moved}" in " ".join(findings(read_run(folder)))


@pytest.mark.parametrize(("low", "high", "expected"), [
    (-0.06, -0.04, "paired over 6 answers: -0.050 nats per token (-0.060 to -0.040))."),
    (-0.06, 0.01, "paired over 6 answers: no difference detected, -0.050 nats per token (-0.060 to +0.010)).")])
def test_the_drift_of_two_arms_is_judged_answer_by_answer(folder, low, high, expected):
    measures = json.loads((folder / "measures.json").read_text())
    measures["arms"]["sdft"]["general"]["against_sft"] = {"difference": -0.05, "low": low, "high": high, "n": 6}
    write_json(folder / "measures.json", measures)
    assert expected in " ".join(findings(read_run(folder)))


def test_a_run_without_optional_parts_still_reports(folder):
    measures = json.loads((folder / "measures.json").read_text())
    del measures["gap"], measures["audit"]
    measures["arms"] = {arm: measures["arms"][arm] for arm in ("base", "sft")}
    write_json(folder / "measures.json", measures)
    for name in ("rewrites.jsonl", "distilled.jsonl", "summary.json"):
        (folder / name).unlink()
    assert "sft" in write_report(folder).read_text()


def test_a_folder_without_a_finished_run_is_one_line(tmp_path):
    with pytest.raises(SdftError, match="expected a finished run with measures.json"):
        write_report(tmp_path)


def test_measures_without_arms_are_one_line(folder):
    for arms in ({}, {"base": {}}):
        write_json(folder / "measures.json", {"arms": arms})
        with pytest.raises(SdftError, match="measures.json: expected the suites that each arm answered"):
            write_report(folder)


def test_every_measure_is_in_a_table_with_its_interval_and_count(measured):
    run = read_run(measured)
    assert gap_table(run).rows == [
        ["original", "5.33", "206.4", "3", "42", "25.0", "62.5", "50", "10"],
        ["distilled", "0.60", "1.8", "2", "42", "25.0", "62.5", "50", "10"]]
    assert [row[1:] for row in paired_table(run).rows] == [
        ["5.30", "0.60", "-4.70 (-5.10 to -4.20)", "200.3 → 1.8", "41 → 3", "– → 12.5", "7", "35 → 350"],
        ["5.30", "0.60", "-0.20 (-0.50 to +0.10)", "200.3 → 1.8", "41 → 3", "– → 12.5", "7", "35 → 35"]]
    assert drift_table(run).rows[2:] == [
        ["sdft", "89.0", "general", "0.100 (0.080–0.120)", "0.700 (0.600–0.800)", "0.100 (0.080–0.120)", "90.0",
         "6 / 5"], ["sdft", "89.0", "task", "0.350 (0.150–0.250)", "–", "0.100 (0.080–0.120)", "90.0", "6 / 0"]]
    assert similarity_table(run).rows == [["distilled and original targets", "0.31", "0.12", "0.87", "7"],
                                          ["general answers of sft and base", "0.50", "0.20", "–", "6"],
                                          ["general answers of sdft and base", "0.50", "0.20", "–", "6"]]
    assert weights_table(run).rows[1] == ["sdft", "8", "4.24", "1.23", "12.3", "0.046", "2.3", "5.7", "0.123", "0.9876",
                                          "0.8765", "0.50"]
    assert "over 2 matrices" in weights_table(run).note
    assert between_table(run).rows == [["sft, sdft", "0.31", "0.42", "–", "4.50 / 4.20"]]
    page, text = write_report(measured).read_text(), (measured / "report.md").read_text()
    for table in (gap_table, paired_table, drift_table, similarity_table, difference_table, weights_table,
                  between_table):
        for cell in (cell for row in table(run).rows for cell in row[1:]):
            assert f"<td>{escape(cell)}</td>" in page and f" {cell} |" in text, cell


def test_a_direction_is_stated_only_where_holm_agrees(measured):
    run = read_run(measured)
    rows = {tuple(row[:3]): row[3:] for row in difference_table(run).rows}
    assert rows["sft", "base", "passages"] == ["no difference detected, +10.0 points (+2.0 to +20.0)", "8", "McNemar",
                                               "0.030", "0.120"]
    assert rows["sdft", "sft", "passages"][0].startswith("lost -10.0 points") and len(rows) == 5
    assert rows["sdft", "sft", "passages"][-2:] == ["< 0.001", "0.005"]
    text = " ".join(findings(run))
    assert "sdft compared with sft, on passages: lost -10.0 points (-20.0 to -5.0) [n = 8, Holm's p 0.005]." in text
    assert "passages: gained" not in text and "Holm's p 0.120" in text
    assert ("7 rewrites and their originals in NLL under the base model: -4.700 nats per token (-5.100 to -4.200) at "
            "full length; no difference detected, -0.200 nats per token (-0.500 to +0.100) at equal length") in text
    assert "the reverse KL is 0.700 with sdft and 0.700 with sft; the intervals overlap" in text


def test_the_heat_map_has_the_warmth_of_every_token_and_no_markup_of_the_texts(measured):
    page = write_report(measured).read_text()
    for span in ('<span class=low title="7.50 nats, rank 512" style="background:rgba(224,90,0,0.75)">4</span>',
                 '<span title="0.00 nats, rank 0" style="background:rgba(224,90,0,0.00)">&lt;|end|&gt;</span>',
                 '<span title="0.90 nats, rank 0" style="background:rgba(224,90,0,0.10)">It</span>',
                 '<span class=low title="0.92 nats, rank 1" style="background:rgba(224,90,0,0.10)">⏎\n</span>',
                 '<span class=low title="3.45 nats, rank 17" style="background:rgba(224,90,0,0.37)">is</span>'):
        assert span in page, span
    assert "question r0</p>" in page and "3.75 nats/token, 2 tokens" in page and "0.9 (p = 0.4)" in page


def test_a_figure_names_its_axes_and_counts(measured):
    figures = {figure.name: figure for figure in draw_figures(read_run(measured))}
    assert len(figures) == 12
    for name, texts in {"gap_distribution": ("nats/token", "records, %", "(n = 10)"),
                        "gap_by_position": ("position of the token", "nats/token", "(n = 10)", "2–9", "50 tokens"),
                        "activations": ("layer", "(n = 1,234 tokens)", "CKA"),
                        "spectrum": ("singular value of ΔW", "σ", "(n = 8 matrices)"),
                        "fisher": ("layer", "Σ F·ΔW², nats²", "(F of n = 5 answers)"),
                        "interpolation": ("NLL, nats/token", "base", "tuned")}.items():
        drawn = re.sub(r"<!-- (.*?) -->", r"\1", figures[name].svg)     # matplotlib writes a text above its glyphs
        assert all(text in drawn for text in texts), name


@pytest.mark.parametrize("version", [1, None])
def test_a_run_folder_of_an_older_version_is_refused_in_one_line(folder, version):
    write_json(folder / "environment.json", {"format": version} if version else {})
    with pytest.raises(SdftError, match="expected a run folder of format 3, got one of format 1 by another") as error:
        write_report(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("absent", [
    ("reverse", "on_task", "activations", "interpolation", "fisher", "between", "spectrum", "changed_bf16",
     "stable_rank", "effective_rank", "spectral_shift", "left_cosine", "right_cosine", "intruders"),
    ("kl", "kl_low", "kl_high", "by_position", "tv", "tv_low", "tv_high", "top1", "reverse"),
    ("lengths", "length_mean", "rouge_l"), ("shift", "fisher"), ("training",), ("gap",), ("audit",), ("token_map",),
    ("paired",), ("against_base",),
    ("against_sft",), ("p_holm",), ("by_kind",)])
def test_a_measure_that_a_run_did_not_take_has_no_place_in_the_report(measured, absent):
    def without(value):
        if isinstance(value, list):
            return [without(part) for part in value]
        if not isinstance(value, dict):
            return value
        return {key: {} if key == "by_kind" and key in absent else without(part) for key, part in value.items()
                if key not in absent or key == "by_kind"}

    write_json(measured / "measures.json", without(json.loads((measured / "measures.json").read_text())))
    page = write_report(measured).read_text()
    assert "nan" not in re.sub(r"base64,[^\"]*", "", page) and "<h1>" in page
    if "on_task" in absent:
        assert not re.search("KL\\(arm|Fisher|intruder|interpolat|activations?:|cosine of ΔW", page)
