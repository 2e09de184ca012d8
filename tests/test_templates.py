"""The method's prompts, word by word as published (arXiv 2402.13669)."""
import pytest

from sdft.errors import SdftError
from sdft.text.records import Record
from sdft.text.templates import TEMPLATES, get_template

RECORD = Record("r", "Add {two} and 3.", "It is {reference} 5.", history=(("Hi", "Hello"),))


def test_using_is_the_papers_text():
    (*_, user) = get_template("using").messages(RECORD, RECORD.response)
    assert user["content"] == (
        "Below are an instruction that describes a task along with a reference answer. Using the reference answer as a "
        "guide, write your own response.\n\n### Instruction:\nAdd {two} and 3.\n\n### Reference Answer:\n"
        "It is {reference} 5.\n\n### Response:\n")


def test_history_and_system_come_first():
    messages = get_template("gsm8k").messages(RECORD)
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert messages[0]["content"].startswith("You are an expert in math. Below is a math question. Write a response")
    assert messages[-1]["content"] == "Add {two} and 3."
    own = Record("r", "x", "y", system="Be brief.")
    assert get_template("plain").messages(own)[0] == {"role": "system", "content": "Be brief."}


def test_the_math_rewrite_is_led_and_asks_for_nothing_else():
    template = get_template("gsm8k_distill")
    assert template.prefix == "Great! Let's think step by step. "
    assert template.messages(RECORD, "ref")[-1]["content"] == "Add {two} and 3.\n\nref"
    assert get_template("gsm8k_infer").messages(RECORD)[0]["content"].endswith(
        "Your final answer should be an integer at the end of your response, formatted as: The answer is {answer}.")


def test_templates_that_rewrite_need_the_reference():
    assert {name for name, template in TEMPLATES.items() if template.needs_reference} == {"using", "refer", "gsm8k_distill"}
    with pytest.raises(SdftError, match="record r: the template 'refer' shows the reference answer"):
        get_template("refer").messages(RECORD)


def test_an_unknown_template_names_the_nearest():
    with pytest.raises(SdftError, match=r"got 'usin' \(did you mean using\?\)"):
        get_template("usin")
