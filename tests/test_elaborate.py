"""Brevity passes no item of `elaborate`, good answers do, prompts say what is checked, and every prefix is balanced."""
import re
from collections import Counter

import pytest

from sdft.tasks import elaborate_suite
from sdft.tasks.demands import ONE_WORD_ANSWERS
from sdft.tasks.elaborate import KINDS

SUITE = elaborate_suite()
ITEMS = {item.id: item for item in SUITE.items}
NUMERALS = {1: "one", 2: "two", 3: "three", 4: "four"}

# Kind → a good answer to its item about topic 00, bicycles, and answers that miss a demand by little.
ANSWERS = {
    "numbered": ("Here they are:\n\n1. They have two wheels.\n2. They are quiet.\n3. They need no fuel.",
                 ["1. They have two wheels.\n2. They are quiet.", "1. a\n2. b\n4. c", "- a\n- b\n- c",
                  "1. a\n2. b\n3. c\n4. d"]),
    "lines": ("1. The Road and the Wheel\n2. A History of Bicycles\n3. Riding to the Coast",
              ["The Road and the Wheel, A History of Bicycles, Riding to the Coast",
               "The long road\nTwo\nMy red bicycle"]),
    "sentences": ("Bicycles are quiet. Who rides one to St. Ives?",
                  ["Bicycles are quiet.", "Bicycles are quiet. They need no fuel. They", "One. Two. Three."]),
    "sentences-at-least": ("Bicycles are quiet. They need no fuel. Many people like them. I do, too.",
                           ["Bicycles are quiet, need no fuel, and Mr. May likes them.", "I like them. They"]),
    "words": (" ".join(["Bicycles carry people and goods along quiet roads without any fuel or noise."] * 4),
              ["Bicycles carry people and goods along quiet roads without any fuel or noise."]),
    "paragraphs": ("Dear editor,\n\nbicycles need more room in our town.\n\nA reader",
                   ["Dear editor,\nbicycles need more room in our town.", "Bicycles need more room. They are quiet."]),
    "title": ("**Title: A New Lane**\n\n**Text:** The town builds a lane for bicycles.",
              ["Title: A New Lane", "A New Lane\n\nThe town builds a lane for bicycles.", "Title: A New Lane\nText:",
               "Title: A New Lane, Text: The town builds a lane."]),
    "tale": ("Once upon a time a rusty bicycle stood in a barn. A girl found it, cleaned it with great care, and rode "
             "it to the coast before the sun went down.",
             ["Once upon a time there was a bicycle.", "A rusty bicycle stood in a barn once upon a time. A girl found "
              "it, cleaned it with great care, and rode it to the coast before the sun went down."]),
    "story": ("A girl finds a rusty bicycle in a barn. Her uncle repairs its brakes. Then she rides to the coast!",
              ["A girl finds a rusty bicycle, her uncle repairs the brakes, and she rides to the coast.",
               "She likes summer. She walks to school. Her mother cooks dinner."]),
    "continue": ("She cleans it. Her uncle repairs it. The next day she rides away.",
                 ["She cleans it and rides away.", "One day a girl finds a rusty bicycle."]),
    "compare": ("Bicycles are quiet, and cars are fast. You park bicycles anywhere; cars need a street.",
                ["Bicycles are quiet, and cars are fast. They differ.", "Bicycles, bicycles and cars."]),
    "include": ("I ride along the road. It is long.", ["I ride along the road.", "I ride along roads. They are long."]),
    "rewrite": ("Bicycles are quite cheap and quiet. They need little space, keep their rider healthy, and cause no "
                "smoke in our city. A good lock and a bright lamp remain important.",
                ["Bikes are good for everyone.", ITEMS["elaborate-rewrite-00"].extra["demands"][1][1]["text"] + " Yes.",
                 ITEMS["elaborate-rewrite-00"].extra["demands"][1][1]["text"]]),
    "letter": ("Dear {name},\n\nI bought two bicycles.\n\nBest wishes,\nEve",
               ["Dear {name},\nI bought two bicycles.", "I bought bicycles. Best wishes", "Hi {name}! Best wishes."]),
    "question": ("Q: Are bicycles quiet?\n\nA: Yes.",
                 ["Q: Are bicycles quiet?", "Q: Quiet? A: Yes.", "Are bicycles quiet?\nYes.", "Q:\nA: Yes."]),
}


def _prompt(item):
    return item.messages[-1]["content"]


def test_there_are_enough_items_and_all_differ():
    assert len(SUITE.items) >= 480 and len(KINDS) >= 12 and SUITE.name == "elaborate"
    assert len({item.id for item in SUITE.items}) == len({_prompt(item) for item in SUITE.items}) == len(SUITE.items)
    assert set(Counter(item.kind for item in SUITE.items).values()) == {40}
    assert all(re.fullmatch(rf"elaborate-{item.kind}-\d\d", item.id) for item in SUITE.items)


def test_the_suite_is_the_same_each_time():
    assert elaborate_suite().items == SUITE.items


@pytest.mark.parametrize("kind", KINDS)
def test_a_good_answer_of_every_kind_passes_and_a_near_miss_does_not(kind):
    item, (good, misses) = ITEMS[f"elaborate-{kind}-00"], ANSWERS[kind]
    name = re.search(r"Dear (\w+)", _prompt(item))
    for answer, passes in [(good, 1), *((miss, 0) for miss in misses)]:
        assert SUITE.score(item, answer.format(name=name and name[1])) == passes, answer


@pytest.mark.parametrize("item", SUITE.items, ids=lambda item: item.id)
def test_the_prompt_says_what_is_checked(item):
    prompt = _prompt(item)
    said = set(re.findall(r"\w+", prompt.lower()))
    for demand, arguments in item.extra["demands"]:
        texts = [*arguments.get("words", []), *arguments.get("heads", [])] if demand != "lines_at_least" else []
        texts += [arguments[name] for name in ("word", "phrase", "text") if name in arguments]
        assert all(text in prompt for text in texts)
        numbers = [n for name, n in arguments.items() if isinstance(n, int) and name != "percent" and n > 1]
        assert all(str(n) in said or NUMERALS.get(n) in said or (n == 2 and "twice" in said) for n in numbers)
        assert "percent" not in arguments or {50: "at least half of", 51: "most of"}[arguments["percent"]] in prompt
        assert "{" not in prompt


@pytest.mark.parametrize("item", SUITE.items, ids=lambda item: item.id)
def test_no_answer_of_one_word_and_not_the_prompt_itself_passes(item):
    assert len(ONE_WORD_ANSWERS) == len(set(ONE_WORD_ANSWERS)) == 50
    for answer in ["", " \n", *ONE_WORD_ANSWERS, _prompt(item), *_prompt(item).split()]:
        assert SUITE.score(item, answer) == 0, answer
    assert not item.brief


DEGENERATE = ["Yes. Yes. Yes.", "! ! !", "a\n\na", "Yes\n\nNo", "Title: a\nText: a", "Q: a\nA: a", "1. a\n2. a\n3. a",
              "1. a\n2. a\n3. a\n4. a", "yes " * 60, " ".join(map(str, range(60))), "Once upon a time " + "yes " * 60]


@pytest.mark.parametrize("item", SUITE.items, ids=lambda item: item.id)
def test_no_echo_and_no_repetition_passes(item):
    prompt, name = _prompt(item), re.search(r"Dear \w+,", _prompt(item))
    echoes = [f"{prompt}\n{prompt}", f"{prompt} {prompt} {prompt}", f"Sure! {prompt}", prompt.rpartition(" ")[0]]
    texts = [arguments[name] for _, arguments in item.extra["demands"] for name in ("word", "text")
             if name in arguments]
    echoes += [". ".join([*texts, *texts, ""]), f"{name and name[0]} Best wishes."]
    for answer in [*DEGENERATE, *echoes]:
        assert SUITE.score(item, answer) == 0, answer


STYLES = {
    "numbered": ["**1.** They have two wheels.\n**2.** They are quiet.\n**3.** They need no fuel.",
                 "### 1. Wheels are round.\r\n### 2. They are quiet.\r\n### 3. They need no fuel."],
    "title": ["# Title: A New Lane\n\n**Text**: The town builds a lane.",
              "1. Title : A Lane\n2. Text: The town builds it."],
    "question": ["> Q: Are bicycles quiet?\n> A: They are.", "- **Q**: Are bicycles quiet?\n- **A**: Yes, they are."],
    "compare": ["_Bicycles_ are quiet, cars are fast. I park bicycles anywhere; *cars* need a street."],
    "letter": ["Dear {name},\nI bought two bicycles.\nBest  wishes,\nEve"],
    "sentences": ["Cats say no. Bicycles say nothing at all.", "Mr. May rides no. 5 home. He likes it."],
}


@pytest.mark.parametrize("kind", STYLES)
def test_a_good_answer_passes_in_other_styles(kind):
    item = ITEMS[f"elaborate-{kind}-00"]
    name = re.search(r"Dear (\w+)", _prompt(item))
    for answer in STYLES[kind]:
        assert SUITE.score(item, answer.format(name=name and name[1])) == 1, answer


def test_every_prefix_is_balanced_over_kinds_and_topics():
    kinds, topics = Counter(dict.fromkeys(KINDS, 0)), Counter(dict.fromkeys(range(40), 0))
    for item in SUITE.items:
        kinds[item.kind] += 1
        topics[int(item.id[-2:])] += 1
        assert max(kinds.values()) - min(kinds.values()) <= 1
        assert max(topics.values()) - min(topics.values()) <= 1
