"""Every kind of demand is checked strictly and fairly, and every prompt says what its checker wants."""
from collections import Counter

import pytest

from sdft.tasks import general_suite, instruction_suite
from sdft.tasks.demands import DEMANDS, one_word_passes, satisfies

CASES = {
    "lower_case": ({}, ["all small, with 3 digits."], ["Not all small", "123"]),
    "upper_case": ({}, ["WET FLOOR!"], ["WET Floor", "123"]),
    "bullets": ({"count": 2}, ["Sure:\n- a\n- b\nDone.", "* a\n  * b", "• a\n• b"],
                ["- a", "- a\n- b\n- c", "1. a\n2. b", "-a\n-b", "a - b - c"]),
    "numbered": ({"count": 2}, ["1. a\n2. b", "Steps:\n\n1) a\n\n2) b\n"],
                 ["1. a", "1. a\n2. b\n3. c", "1. a\n1. b", "- a\n- b", "2. a\n1. b"]),
    "contains": ({"words": ["rose", "tea"]}, ["Tea with a rose."], ["roses and tea", "a rose"]),
    "avoids": ({"words": ["hot", "the"]}, ["Other things are warm; a hotel."], ["The sea.", "so hot!"]),
    "repeats": ({"word": "moon", "count": 2}, ["Moon, moon!", "moon moon moon"], ["moonlight on the moon", "moon"]),
    "json_keys": ({"keys": ["a", "b"]}, ['{"a": 1, "b": [2]}', '```json\n{"b": 1, "a": 2}\n```', ' {"a":1,"b":2}\n'],
                  ['{"a": 1}', '{"a": 1, "b": 2, "c": 3}', 'Here: {"a": 1, "b": 2}', '["a", "b"]', "{'a': 1, 'b': 2}",
                   '{"a": 1, "b": 2']),
    "starts_with": ({"phrase": "In my opinion"}, ["In my opinion, yes.", '"in my  opinion: no"', "**In my opinion**"],
                    ["Well, in my opinion", "In my opinionated view", "In my"]),
    "ends_with": ({"phrase": "That's all."}, ["Red. That's all.", "Red. That’s all.\n", '"Red. That\'s all."'],
                  ["That's all. Bye.", "Red. That's all", "all.", "Scraps of That's all. x"]),
    "words_at_most": ({"count": 3}, ["one two three", "one"], ["one two three four"]),
    "words_at_least": ({"count": 3}, ["one two three", "a b c d"], ["one two"]),
    "sentences": ({"count": 2}, ["One. Two!", "Dr. May paid 3.50 euros. Why?", 'He said "no." Then he left.',
                                 "1. One.\n2. Two."],
                  ["One.", "One. Two. Three.", "One. Two", "One. Two. And"]),
    "paragraphs": ({"count": 2}, ["One.\n\nTwo.", "One\nstill one\n \n\nTwo\n"], ["One.\nTwo.", "a\n\nb\n\nc"]),
    "sentences_at_least": ({"count": 2}, ["One. Two!", "One. Two. And", "1. One.\n2. Two."],
                           ["One.", "Dr. May came.", "One and two", "1. a\n2. b"]),
    "lines_at_least": ({"count": 2, "words": 3}, ["a b c\nd e f g", "x\na b c\n\nd e f"],
                       ["a b c\nd e", "a b c d e f", "1. a b\n2. c d e", "Here they are:\na b c"]),
    "sections": ({"heads": ["Q:", "A:"]}, ["Q: a?\nA: b", "**Q:** a?\n\n**A:**\nb", "Q:\nQ: a\n a: b\nQ: c"],
                 ["Q: a?", "Q: a?\nA:", "Q:\nA: b", "Q: a? A: b", "Q: a\n**A:**\n", "a Q: b\na A: b"]),
    # the five words of four letters or more count, and four of them are 80 %
    "keeps": ({"text": "The cats sleep under the warm sofa.", "percent": 80},
              ["The SOFA is warm, and cats sleep.", "Sleeping under sofas was warm."],
              ["Cats sleep under it.", "A cat sleeps under a sofa."]),
    "differs": ({"text": "It is “warm”, today."}, ["It is hot today.", "It is warm.", "It is warm today3."],
                ['It is "warm", today.', "Say: it  is warm today! Yes."]),
    "paragraphs_at_least": ({"count": 2}, ["One.\n\nTwo.", "a\n\nb\n \nc"], ["One.\nTwo.", "\n\nOne.\n\n"]),
    "no_commas": ({}, ["None here; really."], ["One, here"]),
    "quoted": ({}, ['"Patience."', "“Patience.”\n"], ["Patience", 'He said "yes".', '"', '""', "'single'"]),
    "one_of": ({"options": ["yes", "it depends"]}, ["Yes.", " it depends\n", '"YES"', "**yes**"],
               ["Yes, it is.", "no", "yes it depends"]),
    "title": ({}, ["<<The Road>>\nIt was long.", "Text. << A b >>"], ["<The Road>", "<<>>", "<< \n>>", "The Road"]),
}


def test_every_kind_has_cases_and_there_are_enough_kinds():
    assert set(CASES) == set(DEMANDS) and len(DEMANDS) >= 12


@pytest.mark.parametrize("kind", DEMANDS)
def test_good_answers_satisfy_and_bad_ones_do_not(kind):
    arguments, good, bad = CASES[kind]
    for response in good:
        assert satisfies(kind, response, arguments), response
    for response in [*bad, "", "  \n "]:
        assert not satisfies(kind, response, arguments), response


def test_an_empty_response_satisfies_no_prompt():
    suite = instruction_suite()
    assert sum(suite.score(item, "") for item in suite.items) == 0


def test_there_are_enough_prompts_of_every_kind_and_all_differ():
    items = instruction_suite().items
    kinds = Counter(item.kind for item in items)
    assert len(items) >= 150 and len(kinds) == 18 and set(kinds) <= set(DEMANDS) and min(kinds.values()) >= 9
    assert len({item.messages[0]["content"] for item in items}) == len({item.id for item in items}) == len(items)


def test_an_item_is_brief_where_one_word_or_the_prompt_itself_passes_its_check():
    """Of those with a word to include, a phrase to end with or few sentences, the prompt itself passes some."""
    brief = Counter(item.kind for item in instruction_suite().items if item.brief)
    word = ("lower_case", "upper_case", "avoids", "words_at_most", "no_commas", "quoted", "one_of", "title")
    assert brief == dict.fromkeys(word, 9) | {"contains": 9, "ends_with": 6, "sentences": 4, "paragraphs": 1}
    for passing in ("", "yes", "Why", "Why so?"):
        assert one_word_passes(lambda answer, passing=passing: answer == passing, "Why so?")
    assert not one_word_passes(lambda answer: answer not in ("Why so?",) and len(answer.split()) > 2, "Why so?")


NUMERALS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five"}


@pytest.mark.parametrize("item", instruction_suite().items, ids=lambda item: item.id)
def test_the_prompt_says_what_its_checker_wants(item):
    prompt = item.messages[0]["content"]
    asked = [*item.extra.get("words", []), *item.extra.get("keys", []), *item.extra.get("options", [])]
    asked += [item.extra[name] for name in ("word", "phrase") if name in item.extra]
    assert all(text in prompt for text in asked)
    if "count" in item.extra:
        count = item.extra["count"]
        said = prompt.replace(",", " ").replace(".", " ").split()
        assert str(count) in said or NUMERALS.get(count) in said
    assert item.extra.keys() == CASES[item.kind][0].keys()


def test_general_prompts_are_many_diverse_and_unscored():
    suite = general_suite()
    kinds = Counter(item.kind for item in suite.items)
    assert suite.score is None and len(suite.items) >= 100 and len(kinds) >= 10
    assert len({item.messages[0]["content"] for item in suite.items}) == len({item.id for item in suite.items})
    assert all(len(item.messages[0]["content"]) > 20 for item in suite.items)
    trained = {item.messages[0]["content"] for item in instruction_suite().items}
    assert not trained & {item.messages[0]["content"] for item in suite.items}
