"""The method's prompts, word by word as published (arXiv 2402.13669), and ours."""
import pytest

from sdft.data.records import Record
from sdft.data.templates import TEMPLATES, get_template
from sdft.errors import SdftError

RECORD = Record("r", "Add {two} and 3.", "It is {reference} {instruction} 5.", history=(("Hi", "Hello"),))


BOTH = "Below are an instruction that describes a task along with a reference answer. "
TASK = "\n\n### Instruction:\nAdd {two} and 3."
ANSWER = "\n\n### Reference Answer:\nIt is {reference} {instruction} 5."
MATH = "You are an expert in math. Below is a math question. Write a response that appropriately answers the question."
PUBLISHED = {        # the system text and the user's turn
    "plain": (None, "Add {two} and 3."),
    "alpaca": (None, "Below is an instruction that describes a task. Write a response that appropriately completes the "
               f"request.{TASK}\n\n### Response:\n"),
    "using": (None, f"{BOTH}Using the reference answer as a guide, write your own response.{TASK}{ANSWER}"
              "\n\n### Response:\n"),
    "refer": (None, f"{BOTH}Refer to the reference answer and write your own response.{TASK}{ANSWER}"
              "\n\n### Response:\n"),
    "gsm8k": (MATH, "Add {two} and 3."),
    "gsm8k_distill": ("You are an expert in math. Below are a math question and its reference answer. Refer to the "
                      "reference answer and write a response that appropriately answers the question.",
                      "Add {two} and 3.\n\nIt is {reference} {instruction} 5."),
    "gsm8k_infer": (f"{MATH} Your final answer should be an integer at the end of your response, formatted as: The "
                    "answer is {answer}.", "Add {two} and 3."),
}
OURS = {
    "copy": f"{BOTH}Write the reference answer as your response, word for word.{TASK}{ANSWER}\n\n### Response:\n",
    "paraphrase": f"{BOTH}Say what the reference answer says in your own words.{TASK}{ANSWER}\n\n### Response:\n",
    "solve_then_check": f"Below is an instruction that describes a task.{TASK}\n\nFirst solve the task by yourself. "
    "Then check your solution against the reference answer below, and write a response that appropriately completes "
    f"the request.{ANSWER}\n\n### Response:\n",
    "using_prefix": PUBLISHED["using"][1], "using_shuffled": PUBLISHED["using"][1],
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_text_is_the_published_one(name):
    system, user = PUBLISHED[name] if name in PUBLISHED else (None, OURS[name])
    expected = [] if system is None else [{"role": "system", "content": system}]
    expected += [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert get_template(name).messages(RECORD, RECORD.response) == [*expected, {"role": "user", "content": user}]


def test_the_records_own_system_text_is_kept():
    own = Record("r", "x", "y", system="Be brief.")
    assert get_template("plain").messages(own)[0] == {"role": "system", "content": "Be brief."}
    assert get_template("gsm8k").messages(own)[0] == {"role": "system", "content": f"{MATH}\n\nBe brief."}


def test_of_the_published_ones_only_the_math_rewrite_begins_the_answer():
    prefixes = {name: template.prefix for name, template in TEMPLATES.items() if template.prefix}
    assert prefixes == dict.fromkeys(("gsm8k_distill", "using_prefix"), "Great! Let's think step by step. ")
    assert [name for name, template in TEMPLATES.items() if template.shuffled] == ["using_shuffled"]


def test_templates_that_rewrite_need_the_reference():
    rewriting = {name for name, template in TEMPLATES.items() if template.needs_reference}
    assert rewriting == {"using", "refer", "gsm8k_distill", *OURS}
    with pytest.raises(SdftError, match="record r: the template 'refer' shows the reference answer"):
        get_template("refer").messages(RECORD)


def test_an_unknown_template_names_the_nearest():
    with pytest.raises(SdftError, match=r"got 'usin' \(did you mean using\?\)"):
        get_template("usin")
