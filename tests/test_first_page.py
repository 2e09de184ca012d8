"""The first page says in words what the numbers of the run say, and shows no number that the run does not have."""
from __future__ import annotations

import re
from functools import partial
from html.parser import HTMLParser
from math import exp, sqrt
from random import Random

import pytest

from sdft.files import Journal, write_json, write_text
from sdft.measure.abilities import against
from sdft.measure.forgetting import adjust_together, compare_forgetting, long_answers, suite_result
from sdft.report import write_report
from sdft.report.answer import cards, headline, introduction, loss_suite, main_arms, reasons
from sdft.report.drawing import svg_of
from sdft.report.figures import learned_and_lost
from sdft.report.first_page import first_page, first_page_as_markdown
from sdft.report.prompts import chosen_prompts, rule, shortened
from sdft.report.run import Run, read_run
from sdft.report.suite_tables import difference_table, forgetting_table, kinds_table
from sdft.report.tables import as_text, result_table
from sdft.results import FORMAT
from sdft.tasks.base import Item, Suite


def share(count, n):
    """count / n with Wilson's interval, z = 1.96."""
    p, z = count / n, 1.959964
    middle, half, scale = p + z * z / (2 * n), z * sqrt(p * (1 - p) / n + z * z / 4 / n / n), 1 + z * z / n
    return {"share": p, "low": (middle - half) / scale, "high": (middle + half) / scale, "n": n}


def compared(sign, size=0.1, **p):
    """A difference of 10 points that was detected upwards (1), downwards (-1) or not at all (0)."""
    middle = sign * size or 0.02
    return {"difference": middle, "low": middle - 0.05, "high": middle + 0.05, "n": 100, "test": "McNemar",
            **(p or {"p": 0.01 if sign else 0.4})}


def suite(mean, solved, lost=0, gained=0, n=100, trained=True):
    result = {"metric": "accuracy", "mean": mean, "low": mean - .05, "high": mean + .05, "n": n, "tokens_mean": 9.0,
              "solved_by_base": solved, "lost": lost, "gained": gained,
              "by_kind": {"list": {"mean": mean, "n": n, "solved_by_base": solved, "lost": lost, "gained": gained}}}
    if trained and solved:
        result |= {"forgetting": share(lost, solved), "backward_transfer": share(gained, n - solved)}
    return result


def line(id, output):
    return {"id": id, "kind": "", "prompt": f"Say {id}.", "output": output, "tokens": len(output), "finish": "stop",
            "score": None}


def make_run(tmp_path, arms, floor=None, other="elaborate"):
    """A run of these arms: arm → (learned, learned against sft, items lost of 50, forgetting against sft).

    The directions are 1, 0 or -1; None where there is no comparison.
    """
    results = {"base": {"suites": {"passages": suite(.8, 80, trained=False), other: suite(.5, 50, trained=False)},
                        "general": {"n": 3}}}
    if floor is not None:
        results["base"]["suites"][other]["noise_floor"] = share(floor, 50)
    for arm, (learned, more, lost, forgot) in arms.items():
        task, items = suite(.8 + .1 * learned, 80), suite(.4, 50, lost, 5)
        task["against_base"] = compared(learned)
        if more is not None:
            task["against_sft"] = compared(more)
        if forgot is not None:
            items["forgetting_against_sft"] = compared(forgot, p=0.0004 if forgot else 0.4)
        results[arm] = {"suites": {"passages": task, other: items}, "general": {}, "targets": "",
                        "training": {"records": 400}}
    answers = {arm: {"general": [line("a", "yes"), line("b", "yes")]} for arm in results}
    return Run(tmp_path, {"arms": results}, {}, {}, "", {"model": {"model": "tiny"}, "train": {"method": "lora"}}, {},
               [], {}, answers)


@pytest.mark.parametrize(("arms", "sentences"), [
    ({"sft": (1, None, 40, None), "sdft": (1, 0, 15, -1)}, [
        "Plain fine-tuning learned the task but lost 40 of the 50 instructions it could follow before.",
        "Self-distillation learned it too and lost fewer: 15."]),
    ({"sft": (1, None, 40, None), "sdft": (1, -1, 15, -1)}, [
        "Plain fine-tuning learned the task but lost 40 of the 50 instructions it could follow before.",
        "Self-distillation learned less of it but lost fewer: 15."]),
    ({"sft": (0, None, 40, None), "sdft": (1, 1, 45, 1)}, [
        "Plain fine-tuning gained 2 points in the task, which could be chance, and lost 40 of the 50 instructions it "
        "could follow before.", "Self-distillation learned it but lost more: 45."]),
    ({"sft": (-1, None, 0, None), "sdft": (0, 0, 0, 0)}, [
        "Plain fine-tuning got worse at the task and lost none of the 50 instructions it could follow before.",
        "Self-distillation gained 2 points in the task, which could be chance, and lost none."]),
    ({"sft": (1, None, 10, None), "sdft": (1, 1, 12, 0)}, [
        "Plain fine-tuning learned the task but lost 10 of the 50 instructions it could follow before.",
        "Self-distillation learned more of it and lost 12; the difference could be chance."]),
    ({"sft": (1, None, 40, None)}, [
        "Plain fine-tuning learned the task but lost 40 of the 50 instructions it could follow before."]),
    ({"sdft": (0, None, 15, None)}, [
        "Self-distillation gained 2 points in the task, which could be chance, and lost 15 of the 50 instructions it "
        "could follow before."]),
    ({"replay": (1, -1, 15, -1), "sft": (1, None, 40, None)}, [
        "Plain fine-tuning learned the task but lost 40 of the 50 instructions it could follow before.",
        "Arm replay learned less of it but lost fewer: 15."]),
    ({"kl": (1, None, 15, None), "low-lr": (0, None, 0, None)}, [
        "Arm kl learned the task but lost 15 of the 50 instructions it could follow before.",
        "Arm low-lr gained 2 points in the task, which could be chance, and lost none of the 50 instructions it could "
        "follow before."]),
    ({}, ["No version of the model was trained."])])
def test_the_headline_follows_the_intervals_and_p_values(tmp_path, arms, sentences):
    assert headline(make_run(tmp_path, arms)) == sentences


BOTH = {"sft": (1, None, 40, None), "sdft": (1, 0, 15, -1)}


@pytest.mark.parametrize("difference", [-0.02, 0.0, 0.004])
def test_a_task_that_was_not_learned_is_said_so(tmp_path, difference):
    run = make_run(tmp_path, {"sft": (0, None, 40, None)})
    run.results["sft"]["suites"]["passages"]["against_base"] |= {"difference": difference}
    assert headline(run)[0].startswith("Plain fine-tuning did not detectably learn the task and lost 40 of the 50")


def test_a_loss_within_the_noise_of_the_base_model_is_no_loss(tmp_path):
    arms = {"sft": (1, None, 6, None)}                  # Wilson's interval: 5.6 to 23.8 %; of 5 in 50, up to 21.4 %
    assert "but lost 6 of the 50" in headline(make_run(tmp_path, arms))[0]
    assert headline(make_run(tmp_path, arms, floor=5)) == [
        "Plain fine-tuning learned the task and lost 6 of the 50 instructions it could follow before, which could be "
        "chance."]


def test_one_point_is_one_point(tmp_path):
    run = make_run(tmp_path, {"sft": (0, None, 40, None)})
    run.results["sft"]["suites"]["passages"]["against_base"] |= {"difference": 0.01}
    assert headline(run)[0].startswith("Plain fine-tuning gained 1 point in the task, which could be chance, and lost")


def test_without_elaborate_the_long_part_of_the_instructions_shows_what_was_lost(tmp_path):
    run = make_run(tmp_path, BOTH, other="instructions")
    for arm, lost in (("base", 0), ("sft", 9), ("sdft", 3)):
        run.results[arm]["suites"]["instructions"]["parts"] = {
            "long": suite(.3, 10, lost, 1, n=30, trained=arm != "base"), "brief": suite(.3, 40, 0, 0, n=70)}
    assert loss_suite(run).solved == 10
    assert headline(run)[0].endswith("but lost 9 of the 10 instructions it could follow before.")
    assert cards(run)[1].sentences[0] == (
        "Of the 10 instructions (of 30) that the model could follow before, checked by a program. Each asks for more "
        "than a word, such as a list or three paragraphs.")


def test_instructions_that_were_not_split_are_not_said_to_ask_for_more_than_a_word(tmp_path):
    assert cards(make_run(tmp_path, BOTH, other="instructions"))[1].sentences[0] == (
        "Of the 50 instructions (of 100) that the model could follow before, checked by a program.")


def test_another_suite_is_named_by_its_items(tmp_path):
    assert headline(make_run(tmp_path, BOTH, other="gsm8k"))[0] == (
        "Plain fine-tuning learned the task but lost 40 of the 50 items of gsm8k it could solve before.")


def test_a_run_without_a_second_suite_says_that_losses_were_not_measured(tmp_path):
    run = make_run(tmp_path, BOTH)
    for results in run.results.values():
        del results["suites"]["elaborate"]
    assert headline(run) == ["Plain fine-tuning learned the task.", "Self-distillation learned it too."]
    assert introduction(run).endswith("What was lost elsewhere was not measured item by item.")
    assert [card.title for card in cards(run)] == ["Learned"]


def test_a_suite_of_which_the_base_model_solves_nothing_shows_no_loss(tmp_path):
    run = make_run(tmp_path, BOTH)
    for results in run.results.values():
        results["suites"]["elaborate"] = suite(0, 0)
    assert loss_suite(run) is None


@pytest.mark.parametrize(("arms", "text"), [
    (BOTH, "One chat model, tiny, was trained twice on 400 examples of the task passages (questions about short "
           "passages, with one-word answers): on the reference answers (plain fine-tuning, sft), and on its own "
           "rewrites of the reference answers, which it made once before training, seeing each reference "
           "(self-distillation, sdft)."),
    ({"sdft": BOTH["sdft"]}, "trained once on 400 examples of the task passages (questions about short passages, with "
                             "one-word answers): on its own rewrites of the reference answers, which it made once"),
    ({**BOTH, "kl": BOTH["sdft"]}, "(self-distillation, sdft), and in other ways (baselines: kl).")])
def test_the_introduction_names_what_was_trained(tmp_path, arms, text):
    assert text in introduction(make_run(tmp_path, arms))


def test_a_task_that_the_report_cannot_describe_is_only_named(tmp_path):
    run = make_run(tmp_path, BOTH)
    for results in run.results.values():
        results["suites"] = {"mine" if name == "passages" else name: suite for name, suite in results["suites"].items()}
    assert "was trained twice on 400 examples of the task mine: on the reference answers" in introduction(run)


def test_the_cards_have_the_numbers_of_every_arm_and_say_which_difference_was_detected(tmp_path):
    run = make_run(tmp_path, {**BOTH, "kl": (0, 0, 9, -1)}, floor=2)
    for arm, kept, shrunk in (("sft", 52, 36), ("sdft", 94, 2)):
        run.results[arm]["general"]["long_answers"] = {**share(kept, 97), "kept": kept, "shrunk": shrunk}
    run.results["sdft"]["general"]["long_answers"]["against_sft"] = compared(1, p=0.00001, p_holm=0.002)
    learned, lost, collapsed = cards(run)
    assert learned.numbers == [("base", "80 %"), ("sft", "90 %"), ("sdft", "90 %"), ("kl", "80 %")]
    assert learned.sentences == [
        "Accuracy on 100 new items of the task.",
        "Plain fine-tuning: +10.0 points (+5.0 to +15.0).",
        "Self-distillation: +10.0 points (+5.0 to +15.0).",
        "The difference between the two could be chance (p = 0.400)."]
    assert lost.numbers == [("sft", "40 of 50"), ("sdft", "15 of 50"), ("kl", "9 of 50")]
    assert lost.sentences == [
        "Of the 50 instructions (of 100) that the model could follow before, checked by a program. Each asks for more "
        "than a word, such as a list, a story or a letter to a friend.",
        "Plain fine-tuning: 80 % (67 to 89).", "Self-distillation: 30 % (19 to 44).",
        "Self-distillation lost fewer than plain fine-tuning (p < 0.001).",
        "Asked a second time, the untrained model failed 2 of these 50 (4 %): that much can be chance."]
    assert collapsed.numbers == [("sft", "36 of 97"), ("sdft", "2 of 97")]
    assert collapsed.sentences == ["Answers to open prompts that shrank to less than a quarter of their words, of the "
                                   "97 that had 25 or more before."]


def test_the_card_and_the_headline_say_the_same_of_a_gain_that_could_be_chance(tmp_path):
    run = make_run(tmp_path, {"sft": (0, None, 40, None)})
    run.results["sft"]["suites"]["passages"]["against_base"] |= {"p_holm": 0.41}
    assert cards(run)[0].sentences[1] == (
        "Plain fine-tuning: +2.0 points (\N{MINUS SIGN}3.0 to +7.0): could be chance (corrected p = 0.410).")
    assert "gained 2 points in the task, which could be chance" in headline(run)[0]


def test_a_difference_with_a_large_adjusted_p_value_has_no_direction(tmp_path):
    run = make_run(tmp_path, BOTH)
    run.results["sdft"]["suites"]["elaborate"]["forgetting_against_sft"]["p_holm"] = 0.06
    assert headline(run)[1] == "Self-distillation learned it too and lost 15; the difference could be chance."


@pytest.mark.parametrize(("low", "high", "text"), [
    (-5, -4, "The model's own rewrites are nearer to what it would say: "),
    (1, 2, "The model's own rewrites are farther from what it would say: "),
    (-1, 1, "Whether the model's own rewrites are nearer to what it would say could be chance: ")])
def test_the_targets_are_nearer_where_the_interval_says_so(tmp_path, low, high, text):
    run = make_run(tmp_path, BOTH)
    run.measures["gap"] = {"original": {"nll": 4.61}, "distilled": {"nll": 0.69, "paired": {"low": low, "high": high}}}
    assert reasons(run) == [("Targets", text + (
        "before training it expects a word or word part of the reference answers with a probability of 1.0 %, and one "
        "of the answers that self-distillation trains on with 50 % (geometric means; 4.61 and 0.69 nats per token)."))]


@pytest.mark.parametrize(("low", "high", "start"), [
    (-0.4, -0.2, " less with self-distillation than with plain fine-tuning (distance"),
    (0.2, 0.4, " more with self-distillation than with plain fine-tuning (distance"),
    (-0.1, 0.1, "; the difference between the two could be chance (distance")])
def test_the_first_words_are_compared_answer_by_answer(tmp_path, low, high, start):
    run = make_run(tmp_path, BOTH)
    for arm, kl8, kl, total in (("sft", 0.54, 0.147, 4.55), ("sdft", 0.24, 0.154, 4.24)):
        run.results[arm]["general"] |= {"kl8": kl8, "kl": kl}
        run.results[arm]["shift"] = {"total": total}
    run.results["sdft"]["general"]["kl8_against_sft"] = {"difference": -.3, "low": low, "high": high, "n": 9}
    (_, words), (_, weights) = reasons(run)
    assert words == (f"The first 8 words or word parts of an answer changed{start} from the untrained model: 0.540 "
                     "with plain fine-tuning and 0.240 with self-distillation; over whole answers: 0.147 and 0.154; KL "
                     "divergence, nats per token).")
    assert weights == ("The weights moved 0.93 times as far with self-distillation as with plain fine-tuning (norm of "
                       "the change: 4.24 and 4.55; no interval, since each was trained once).")


@pytest.mark.parametrize(("difference", "says"), [
    (-0.3, "self-distillation lost fewer, −30 points (−40 to −20)."),
    (0.3, "self-distillation lost more, +30 points (+20 to +40)."),
    (0.05, "the difference could be chance, +5 points (−5 to +15).")])
def test_arms_are_compared_where_they_learned_equally_much(tmp_path, difference, says):
    run = make_run(tmp_path, BOTH)
    run.results["sdft"]["matched"] = {
        "difference": difference, "low": difference - .1, "high": difference + .1, "n": 60, "accuracy": 0.85,
        "forgetting": 0.2, "forgetting_with": 0.2 - difference, "step": 40.0, "step_with": 12.0, "n_task": 50}
    assert reasons(run) == [("At equal learning", "Where both had learned the task equally well (85 % right), plain "
                             f"fine-tuning had lost {20 - 100 * difference:.0f} % and self-distillation 20 % of 60 "
                             f"instructions: {says}")]


def _with_prompts(run, lengths):
    """Answers of base, sft and sdft with the given numbers of words."""
    for number, arm in enumerate(("base", "sft", "sdft")):
        run.answers[arm]["general"] = [line(f"p{k}", "word " * words[number]) for k, words in enumerate(lengths)]


def test_three_prompts_are_shown_by_rank_of_the_difference_in_length(tmp_path):
    run = make_run(tmp_path, BOTH)
    _with_prompts(run, [(100, 100 - spread, 100) for spread in (3, 90, 0, 40, 12, 7, 55, 1)])
    assert [(each.rank, each.prompt) for each in chosen_prompts(run)] == [
        (1, "Say p1."), (3, "Say p3."), (5, "Say p5.")]
    assert rule(run) == ("Chosen by rule, not by hand: of 8 open prompts, sorted by how much the versions' answers "
                         "differ in length, the first, the one a quarter down and the middle one.")


def test_equal_differences_keep_the_order_of_the_run_and_one_prompt_is_shown_once(tmp_path):
    _with_prompts(run := make_run(tmp_path, BOTH), [(5, 5, 9)])
    assert [each.prompt for each in chosen_prompts(run)] == ["Say p0."] and rule(run).endswith("length, the first.")
    _with_prompts(run, [(5, 5, 9)] * 4)
    assert [each.prompt for each in chosen_prompts(run)] == ["Say p0.", "Say p1.", "Say p2."]
    _with_prompts(run, [])
    assert chosen_prompts(run) == [] and rule(run) == ""


def test_an_answer_collapsed_below_a_quarter_of_a_long_one(tmp_path):
    run = make_run(tmp_path, BOTH)
    for words, collapsed in (((40, 10, 9), [False, False, True]), ((24, 1, 1), [False] * 3), ((25, 6, 7), [0, 1, 0])):
        _with_prompts(run, [words])
        chosen, = chosen_prompts(run)
        assert [chosen.collapsed(arm) for arm in run.arms] == collapsed
        assert first_page(run, "").count("class=mark>collapsed<") == sum(collapsed)


def test_a_long_answer_is_cut_after_a_word():
    text = "a sentence of words\n" * 30
    cut = shortened(text)
    assert len(cut) <= 242 and cut.endswith(" …") and text.replace("\n", " ").startswith(cut.removesuffix(" …"))
    assert shortened(" \n") == "(empty answer)" and shortened("a\nb") == "a b"


class Reader(HTMLParser):
    """Reads a page, and fails on a tag that is not closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.ids, self.links = [], [], [], []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img", "br", "hr"):
            self.open.append(tag)
        self.ids += [value for key, value in attrs if key == "id"]
        self.links += [value for key, value in attrs if key == "href"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)


def read(page):
    reader = Reader()
    reader.feed(page)
    assert not reader.open
    return reader


def test_the_first_page_is_well_formed_and_escapes_what_the_model_wrote(tmp_path):
    run = make_run(tmp_path, {**BOTH, "kl": (0, 0, 9, -1)})
    run.answers["sft"]["general"] = [line("a", "<b>4 weeks"), line("b", "yes & no")]
    page = first_page(run, "")
    assert "<b>4 weeks" in " ".join(read(page).text) and "&lt;b&gt;4 weeks" in page
    assert "<b>10</b> kept · <b>40</b> lost · <b>5</b> new" in page
    assert ("New: of the 50 that it could not follow before. The mean over all 100 counts lost and new together: "
            "before training 50 %, plain fine-tuning 40 %, self-distillation 40 %, arm kl 40 %.") in page


def test_the_figure_names_every_version_and_the_end_of_what_can_be_chance(tmp_path):
    svg, caption = svg_of(partial(learned_and_lost, make_run(tmp_path, BOTH, floor=5)))
    for text in ("before training", "plain fine-tuning", "self-distillation", "chance: untrained model asked again"):
        assert f"<!-- {text} -->" in svg                    # matplotlib writes a text above its glyphs
    assert caption.endswith("loses when asked again, up to 21 % (the end of its interval).")     # of 5 in 50
    svg, caption = svg_of(partial(learned_and_lost, make_run(tmp_path, BOTH)))
    assert "chance" not in svg + caption


def test_the_first_screen_has_no_symbols_of_the_trade(tmp_path):
    run = make_run(tmp_path, BOTH, floor=1)
    text = " ".join([*headline(run), introduction(run), *(text for card in cards(run) for text in card.sentences)])
    assert text.count("sft") == text.count("sdft") == 1             # the short names differ by a letter
    assert not re.search(r"\bF\b|\bBT\b|KL|NLL|ΔW|McNemar|Holm|Wilson|\barm\b", text)


def test_the_markdown_page_opens_with_the_same_answer(tmp_path):
    run = make_run(tmp_path, BOTH)
    text = first_page_as_markdown(run)
    assert text.startswith("# " + " ".join(headline(run)) + "\n\n" + introduction(run))
    assert "**Lost:** plain fine-tuning 40 of 50, self-distillation 15 of 50. Of the 50 instructions" in text
    assert ("> Say a.\n\n- before training, 1 word: yes\n- plain fine-tuning, 1 word: yes\n"
            "- self-distillation, 1 word: yes") in text


def test_the_tables_have_losses_and_gains_next_to_every_mean(tmp_path):
    run = make_run(tmp_path, BOTH, floor=2)
    run.results["sdft"]["suites"]["elaborate"]["chance_adjusted"] = {"forgetting": .25, "backward_transfer": .05,
                                                                    "flips": .02, "n": 100}
    run.results["sft"]["suites"]["elaborate"]["parts"] = {"long": suite(.25, 20, 10, 4, n=80)}
    rows = {tuple(row[:2]): row[2:] for row in forgetting_table(run).rows}
    assert rows["sdft", "elaborate"] == ["100", "40.0 (35–45)", "50", "15 of 50", "30.0 (19–44)", "5 of 50",
                                         "10.0 (4–21)", "25.0 / 5.0"]
    assert rows["sft", "elaborate, long items"][:4] == ["80", "25.0 (20–30)", "20", "10 of 20"]
    assert rows["base", "elaborate"][2:5] == ["50", "–", "–"]
    assert rows["base, asked again", "elaborate"][:5] == ["50", "–", "50", "2 of 50", "4.0 (1–13)"]
    assert kinds_table(run, "elaborate").rows == [["list", "100", "50", "50", "40", "40", "5", "40", "15", "5"]]
    terminal = as_text(result_table(run))
    assert "80.0 / 10.0" in terminal and "F (forgetting): of the items that the base model solves" in terminal


def test_a_primary_end_point_is_marked_and_others_have_holms_p(tmp_path):
    run = make_run(tmp_path, BOTH)
    run.results["sdft"]["general"]["long_answers"] = {**share(9, 10), "kept": 9, "shrunk": 0,
                                                      "against_sft": compared(1, p=0.001, p_holm=0.03)}
    rows = {tuple(row[:3]): row[3:] for row in difference_table(run).rows}
    assert rows["sdft", "sft", "elaborate: F"] == ["forgot less, -10.0 points (-15.0 to -5.0)", "100", "McNemar",
                                                   "< 0.001", "primary, not corrected"]
    assert rows["sdft", "sft", "long answers kept"][0] == "kept more, +10.0 points (+5.0 to +15.0)"
    assert rows["sdft", "sft", "long answers kept"][-2:] == ["0.001", "0.030"]


def test_the_main_arms_are_sft_and_sdft_whatever_the_order_of_the_run(tmp_path):
    run = make_run(tmp_path, {"kl": BOTH["sdft"], "sdft": BOTH["sdft"], "sft": BOTH["sft"]})
    assert main_arms(run) == ["sft", "sdft"]


def _journals(folder):
    """Made-up journals of three arms: scores at random, answers of random lengths, with a rule only sft breaks."""
    random, arms = Random(1), {}
    for arm in ("base", "sft", "sdft"):
        words = {"base": 60, "sft": 8, "sdft": 45}[arm]
        right = {"base": (.7, .6), "sft": (.95, .1), "sdft": (.85, .5)}[arm]
        suites = {name: [{**line(f"{name}{k}", "x"), "kind": "ab"[k % 2], "score": float(random.random() < share)}
                         for k in range(80)] for name, share in zip(("passages", "elaborate"), right, strict=True)}
        suites["general"] = [line(f"g{k}", " ".join(["word"] * max(1, words + random.randint(-40, 40))))
                             for k in range(40)]
        for name, lines in suites.items():
            with Journal(folder / "eval" / arm / f"{name}.jsonl") as journal:
                for each in lines:
                    journal.append(each)
        arms[arm] = suites
    return arms


def _measured(answers):
    """measures.json of these journals, by the functions that a run uses."""
    arms = {}
    for arm, lines in answers.items():
        suites = {name: suite_result(Suite(name, [Item(each["id"], []) for each in lines[name]], None, "accuracy", 1),
                                     lines[name], answers["base"][name]) for name in ("passages", "elaborate")}
        general = {"n": 40, "kl": 0.1234, "kl8": 0.4321} if arm != "base" else {"n": 40}
        general["long_answers"] = long_answers(lines["general"], answers["base"]["general"])
        arms[arm] = {"suites": suites, "general": general}
        if arm != "base":
            arms[arm] |= {"targets": "original", "training": {"records": 7, "steps": 1, "tokens": 1, "target_tokens": 1,
                                                              "seconds": 1.0, "left_out": {}}}
    for name in ("passages", "elaborate"):
        ours, sft, base = (answers[arm][name] for arm in ("sdft", "sft", "base"))
        arms["sdft"]["suites"][name] |= {"against_sft": against(ours, sft),
                                         "forgetting_against_sft": compare_forgetting(ours, sft, base)}
    adjust_together(arms, {"passages", "elaborate.forgetting"})
    return {"arms": arms, "gap": {"original": {"nll": 4.57, "records": []}, "distilled": {"nll": 0.82, "records": []}}}


def test_every_number_of_the_first_page_is_one_of_the_journals_or_of_the_measures(tmp_path):
    answers = _journals(tmp_path)
    measures = _measured(answers)
    write_json(tmp_path / "measures.json", measures)
    write_json(tmp_path / "environment.json", {"format": FORMAT})
    write_text(tmp_path / "config.toml", "")
    run = read_run(tmp_path)
    # Counted here from the journals alone.
    right = {arm: {each["id"] for each in lines["elaborate"] if each["score"] == 1} for arm, lines in answers.items()}
    words = {arm: [len(each["output"].split()) for each in lines["general"]] for arm, lines in answers.items()}
    long = [k for k in range(40) if words["base"][k] >= 25]
    n = len(right["base"])
    text = re.sub(r"\s+", " ", " ".join(read(first_page(run, "")).text))
    for arm, name in (("sft", "Plain fine-tuning"), ("sdft", "Self-distillation")):
        lost, new = len(right["base"] - right[arm]), len(right[arm] - right["base"])
        low, high = (100 * share(lost, n)[side] for side in ("low", "high"))
        assert f"{lost} of {n} {name.lower()}" in text
        assert f"{name} : {100 * lost / n:.0f} % ({low:.0f} to {high:.0f})." in text
        assert f"{n - lost} kept · {lost} lost · {new} new" in text
        shrunk = sum(4 * words[arm][k] < words["base"][k] for k in long)
        assert f"{shrunk} of {len(long)} {name.lower()}" in text
    by_spread = sorted(range(40), key=lambda k: min(counts[k] for counts in words.values())
                       - max(counts[k] for counts in words.values()))
    for rank in (0, 10, 20):
        k = by_spread[rank]
        shown = [f"{words[arm][k]} word{'s' * (words[arm][k] > 1)}" for arm in ("base", "sft", "sdft")]
        assert re.search(rf"“Say g{k}\.” before training {shown[0]} .* {shown[1]} .* {shown[2]} ", text)
    # Everything else: a value of measures.json in a form of the page, or a word of the rule.
    leaves, known = [measures], {"95", "25", "8", "1", "40", "11", "21", "7", "150", "135"}
    while leaves:
        value = leaves.pop()
        if isinstance(value, dict):
            leaves += value.values()
        elif isinstance(value, int | float):
            known |= {f"{x:.{d}f}".lstrip("-") for x in (value, 100 * value, 100 * exp(-value)) for d in range(4)}
    known |= {str(x) for arm in right for x in (n - len(right["base"] - right[arm]), 80 - n)}
    known |= {str(x) for counts in words.values() for x in counts} | {str(k) for k in range(40)}
    numbers = set(re.findall(r"\d+(?:\.\d+)?", text))
    assert len(numbers) > 40 and numbers <= known, numbers - known


def test_a_run_with_none_of_the_optional_measures_has_a_page(tmp_path):
    measures = _measured(_journals(tmp_path))
    measures.pop("gap")
    for results in measures["arms"].values():
        results["general"] = {"n": 40}
    write_json(tmp_path / "measures.json", measures)
    write_json(tmp_path / "environment.json", {"format": FORMAT})
    write_text(tmp_path / "config.toml", "")
    page = write_report(tmp_path).read_text()
    reader = read(page)
    assert page.count("<img") == 1 and "How it came about" not in page
    assert {link[1:] for link in reader.links} <= set(reader.ids) and len(set(reader.ids)) == len(reader.ids)
