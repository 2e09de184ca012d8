"""Byte-level BPE against the `tokenizers` library: SmolLM2's files, and Llama 3's ranks with each pre-tokeniser."""
import base64
import json
import pickle
import random
import shutil
from pathlib import Path

import llama_models
import pytest
from tokenizers import Tokenizer as Library
from transformers import AutoTokenizer

from sdft.tokenizers.bpe import BYTE_CHARS, merge, merge_plain
from sdft.tokenizers.loading import load_tokenizer, tokenizer_from_gguf

NASTY = [
    "", " ", "\n", "Hello, world!", "I'll, WE'LL, it'S don'T 'ſ", "  leading and trailing   ",
    "a" * 300, " " * 500 + "x", "\n" * 99,
    "1234567890 3.14 1e-5 ٣٤٥ ½ Ⅷ", "def f(x):\n\treturn {'a': x[0]}\n\n\nprint(f)\r\n",
    "日本語のテキスト、と한국어", "👩‍👩‍👧‍👦🏽🇺🇳 ❤️",
    "e\u0301\u0323 o\u0323\u0301 क्षि",
    "\x00\x01\x1c\x7f\x85\xa0\u200b\u2028\ufeff\ufffd\ufffe", "naïve Œuvre ŒUVRE ß ẞ ĳ ﬁ",
    "\U0001e4d0\U00016130\U00011de0 \U000e0041\U0010ffff", "https://example.org/a?b=c&d=%20#x",
    "!!!???...---___***", "<|im_start|>user\nHi<|im_end|>\n",
    "<|im_start|><|im_end|><|im_start|", "<repo_name>x<file_sep><|eot_id|> <|begin_of_text|>", "<tool>  <tool>x",
]
FRAGMENTS = ["'s", "'LL", "ſ", " ", "  ", "\n", "\r\n", "\t", "1", "٣", "é", "e\u0301",
             "\u0323", "the", "ing", "<|im_end|>", "<|eot_id|>", "<tool>"]


def fuzz(count, seed=0):
    """Yield random strings of ASCII, the lower planes, every plane, and texts that pre-tokenisers treat specially."""
    generator = random.Random(seed)
    for _ in range(count):
        text = ""
        for _ in range(generator.randrange(50)):
            kind = generator.random()
            if kind < 0.3:
                text += chr(generator.randrange(0x80))
            elif kind < 0.5:
                text += chr(generator.randrange(0x3000))
            elif kind < 0.8:
                text += generator.choice(FRAGMENTS)
            else:
                code = generator.randrange(0x110000)
                text += chr(code) if not 0xD800 <= code < 0xE000 else "\ufffd"
        yield text


@pytest.fixture(scope="module")
def llama3_metadata():
    """Return Llama 3's published ranks as GGUF metadata: byte characters, and every merge in the order of its rank."""
    lines = (Path(llama_models.__file__).parent / "llama3" / "tokenizer.model").read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}
    texts = {token: "".join(BYTE_CHARS[byte] for byte in token) for token in ranks}
    merges = [f"{texts[left]} {texts[right]}" for token in ranks for _, _, left, right in sorted(
        (ranks[token[:at]], ranks[token[at:]], token[:at], token[at:])
        for at in range(1, len(token)) if token[:at] in ranks and token[at:] in ranks)]
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<tool>"]
    return {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": [*texts.values(), *special],
        "tokenizer.ggml.token_type": [1] * len(texts) + [3, 3, 3, 4], "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 128000, "tokenizer.ggml.eos_token_id": 128001,
    }


@pytest.fixture(scope="module", params=["smollm2", "llama-bpe", "qwen2", "gpt-2"])
def pair(request, tmp_path_factory):
    """Return our tokenizer, loaded from the files that it saved, and the library's from the same files."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "smollm2":
        load_tokenizer(request.getfixturevalue("smollm2")).save(folder)
    else:
        metadata = request.getfixturevalue("llama3_metadata") | {"tokenizer.ggml.pre": request.param}
        tokenizer_from_gguf(metadata).save(folder)
    return load_tokenizer(folder), Library.from_file(str(folder / "tokenizer.json"))


def test_ids_of_nasty_text(pair):
    ours, library = pair
    for text in NASTY:
        assert ours.encode(text, special=True) == library.encode(text, add_special_tokens=False).ids, ascii(text)


def test_ids_of_random_text(pair):
    ours, library = pair
    for text in fuzz(3000):
        assert ours.encode(text, special=True) == library.encode(text, add_special_tokens=False).ids, ascii(text)


def test_ids_without_special_tokens(pair):
    """special=False is the library's encode_special_tokens: a user's "<|im_end|>" stays ordinary text."""
    ours, library = pair
    library.encode_special_tokens = True
    try:
        for text in [*NASTY, *fuzz(300, seed=1)]:
            ids = ours.encode(text)
            assert ids == library.encode(text, add_special_tokens=False).ids, ascii(text)
            assert not ours.special_ids & set(ids)
    finally:
        library.encode_special_tokens = False


def test_text_of_random_ids(pair):
    """Random ids cut characters in two: each broken sequence becomes as many U+FFFD as the library makes of it."""
    ours, library = pair
    generator = random.Random(0)
    for _ in range(3000):
        ids = [generator.choice((generator.randrange(ours.vocab_size), generator.randrange(300)))
               for _ in range(generator.randrange(12))]
        for skip in (True, False):
            assert ours.decode(ids, skip) == library.decode(ids, skip_special_tokens=skip), ids


def test_text_survives_the_round_trip_if_nothing_normalises_it(pair):
    ours, library = pair
    if library.normalizer is None:
        for text in [*NASTY, *fuzz(300, seed=2)]:
            theirs = library.decode(library.encode(text, add_special_tokens=False).ids, skip_special_tokens=False)
            # SmolLM2's vocabulary lacks a few bytes; we lose the same parts of a text as the library.
            assert ours.decode(ours.encode(text, special=True), skip_special=False) in (text, theirs)


def test_size_and_special_tokens(pair):
    ours, library = pair
    assert ours.vocab_size == library.get_vocab_size()
    added = library.get_added_tokens_decoder()
    assert ours.special == {token.content: id for id, token in added.items() if token.special}


def test_smollm2_names_its_tokens(smollm2):
    tokenizer = load_tokenizer(smollm2)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.stop_ids, tokenizer.add_bos) == (1, 2, (2,), False)
    assert tokenizer.encode("Hello 42") == [19556, 216, 36, 34]
    assert tokenizer.piece(19556) == "Hello" and tokenizer.piece(2) == "<|im_end|>"
    assert "<|im_start|>" in tokenizer.settings.config["chat_template"]


def test_transformers_loads_what_is_saved_and_gives_equal_ids(smollm2, tmp_path):
    ours = load_tokenizer(smollm2)
    ours.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.eos_token_id, theirs.bos_token_id) == (ours.eos_id, ours.bos_id)
    assert theirs.chat_template == ours.settings.config["chat_template"]
    for text in [*NASTY, *fuzz(200, seed=3)]:
        assert ours.encode(text, special=True) == theirs.encode(text, add_special_tokens=False), ascii(text)


def test_saving_keeps_every_stop_token(smollm2, tmp_path):
    source = tmp_path / "source"
    load_tokenizer(smollm2).save(source)
    (source / "generation_config.json").write_text('{"eos_token_id": [2, 0], "temperature": 0.5}')
    load_tokenizer(source).save(tmp_path / "copy")
    assert load_tokenizer(tmp_path / "copy").stop_ids == (2, 0)
    assert json.loads((tmp_path / "copy" / "generation_config.json").read_text())["temperature"] == 0.5


def test_llama3_expects_a_bos_and_ends_turns(llama3_metadata, tmp_path):
    tokenizer_from_gguf(llama3_metadata | {"tokenizer.ggml.pre": "llama-bpe"}).save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(
        '{"bos_token": "<|begin_of_text|>", "eos_token": {"content": "<|end_of_text|>"}}')
    tokenizer = load_tokenizer(tmp_path)        # only the post-processor's template sets add_bos
    assert tokenizer.add_bos and tokenizer.bos_id == 128000
    assert tokenizer.stop_ids == (128001, 128002)
    assert tokenizer.encode("hi", special=True)[0] != 128000


def test_one_token_of_a_cut_character_shows_its_bytes(pair):
    ours, _ = pair
    ids = ours.encode("𓀀")
    assert len(ids) > 1 and "\\x" in ours.piece(ids[0])
    assert ours.decode(ids[:1]) == "\ufffd"
    assert ours.decode(ids) == "𓀀"
    assert ours.decode([ours.vocab_size + 7]) == ours.piece(ours.vocab_size + 7) == ""


@pytest.mark.parametrize("flags", [
    {"lstrip": True}, {"rstrip": True}, {"lstrip": True, "rstrip": True}, {"single_word": True}, {"special": False},
    {"normalized": True, "special": False}, {"normalized": True, "single_word": True},
], ids=str)
def test_added_tokens_take_white_space_and_words_as_the_library_does(flags, llama3_metadata, tmp_path):
    tokenizer_from_gguf(llama3_metadata | {"tokenizer.ggml.pre": "qwen2"}).save(tmp_path)
    spec = json.loads((tmp_path / "tokenizer.json").read_text())
    plain = {"special": True, "normalized": False, "lstrip": False, "rstrip": False, "single_word": False}
    spec["added_tokens"] += [plain | flags | {"id": 128004 + at, "content": text}
                             for at, text in enumerate(["<e\u0301>", "<x>", "<x><x>", "wørd"])]
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    ours, library = load_tokenizer(tmp_path), Library.from_file(str(tmp_path / "tokenizer.json"))
    generator = random.Random(0)
    parts = ["<e\u0301>", "<é>", "<x>", "<x><x>", "wørd", " ", "\n", "\x1c", "\u3000", "a", "é",
             "_", "\u0301", "Ⓐ", "\u200d", "·", "<eot>", "<|eot_id|>"]
    for _ in range(1500):
        text = "".join(generator.choices(parts, k=generator.randrange(9)))
        assert ours.encode(text, special=True) == library.encode(text, add_special_tokens=False).ids, ascii(text)


def test_the_heap_merges_as_the_plain_form():
    generator = random.Random(0)
    for _ in range(300):
        merged = list(range(10, 40))
        ranks = {}
        for rank, new in enumerate(merged):
            ranks[generator.randrange(new), generator.randrange(new)] = rank
        for _ in range(10):
            ids = generator.choices(range(5), k=generator.randrange(40))
            assert merge(ids, ranks, merged) == merge_plain(ids, ranks, merged)


def test_a_word_of_a_hundred_thousand_letters_takes_no_square_time(smollm2):
    """Seconds in O(n log n); in O(n²) it would be minutes."""
    tokenizer = load_tokenizer(smollm2)
    assert tokenizer.decode(tokenizer.encode("ab" * 50_000)) == "ab" * 50_000


def test_lone_surrogates_are_encoded_as_the_replacement_character(smollm2):
    tokenizer = load_tokenizer(smollm2)
    assert tokenizer.encode("a\ud83db") == tokenizer.encode("a\ufffdb")


def test_a_saved_folder_stands_alone(smollm2, tmp_path):
    load_tokenizer(smollm2).save(tmp_path / "one")
    shutil.move(tmp_path / "one", tmp_path / "two")
    assert load_tokenizer(tmp_path / "two").encode("x") == load_tokenizer(smollm2).encode("x")


def test_a_tokenizer_goes_to_another_process_and_forgets_long_words(pair):
    """Worker processes get it by pickle, also after use; the cache holds no word of more than 100 characters."""
    ours, _ = pair
    text = "Worker " + "x" * 101
    ids = ours.encode(text)
    assert pickle.loads(pickle.dumps(ours)).encode(text) == ids == ours.encode(text)
    assert max(map(len, ours._words)) <= 100
