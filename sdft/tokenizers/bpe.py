"""Byte-level byte-pair encoding (Sennrich et al. 2016; on bytes: Radford et al. 2019), from a tokenizer.json.

    text ─added tokens→ ordinary text ─NFC?→ ─pre-tokeniser→ words ─UTF-8→ bytes ─merges→ ids

    "lower"   l o w e r        The pair with the lowest rank merges first, the leftmost if it occurs more than once,
              lo w e r         (l,o) rank 3 · (e,r) rank 1 …
              lo w er …        until no adjacent pair has a rank.

The ids equal those of the `tokenizers` library. A tokenizer.json with unsupported parts is refused by name.
"""
from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, pairwise
from typing import Any

from sdft.errors import SdftError
from sdft.tokenizers.pretokenize import DIGIT, GPT2, PreTokenizer, nfc, replace_surrogates
from sdft.tokenizers.tokenizer import AddedToken, AddedTokens, Settings, Tokenizer

_CACHED_WORDS, _LONGEST_CACHED = 1 << 17, 100        # number of words, characters of a word


# The character that represents each byte in a vocabulary: itself if printable, else one from U+0100 on
_PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
_OTHERS = iter(range(256, 512))
BYTE_CHARS = "".join(chr(byte if byte in _PRINTABLE else next(_OTHERS)) for byte in range(256))
_BYTE_OF = {char: byte for byte, char in enumerate(BYTE_CHARS)}


def merge_plain(ids: Sequence[int], ranks: Mapping[tuple[int, int], int], merged: Sequence[int]) -> list[int]:
    """Merge the adjacent pair of lowest rank, leftmost first, until no pair has a rank: O(n²).

    ids: symbols of one word. ranks: (left, right) → rank of the merge. merged: rank → symbol that the merge makes.
    """
    ids = list(ids)
    none = len(merged)
    while len(ids) > 1:
        pair_ranks = [ranks.get(pair, none) for pair in pairwise(ids)]
        rank = min(pair_ranks)
        if rank == none:
            break
        at = pair_ranks.index(rank)
        ids[at:at + 2] = [merged[rank]]
    return ids


def merge(ids: Sequence[int], ranks: Mapping[tuple[int, int], int], merged: Sequence[int]) -> list[int]:
    """Compute `merge_plain` in O(n log n), with a linked list of symbols and a heap of pairs by (rank, position)."""
    ids = list(ids)
    size = len(ids)
    after = list(range(1, size + 1))            # position of the next symbol; `size` ends the list
    before = list(range(-1, size - 1))
    heap = [(ranks[pair], at) for at, pair in enumerate(pairwise(ids)) if pair in ranks]
    heapq.heapify(heap)
    while heap:
        rank, left = heapq.heappop(heap)
        right = after[left]
        if ids[left] < 0 or right == size or ranks.get((ids[left], ids[right])) != rank:
            continue                            # stale: another merge has used a symbol of the pair
        ids[left], ids[right] = merged[rank], -1
        after[left] = right = after[right]
        if right < size:
            before[right] = left
        for start, end in ((before[left], left), (left, right)):
            if start >= 0 and end < size and (new_rank := ranks.get((ids[start], ids[end]))) is not None:
                heapq.heappush(heap, (new_rank, start))
    return [id for id in ids if id >= 0]


class ByteLevelBPE(Tokenizer):
    """The tokenizer of a parsed tokenizer.json with a byte-level BPE (SdftError if it is damaged or not supported)."""

    def __init__(self, spec: Mapping[str, Any], settings: Settings, where: str):
        self._spec = spec
        try:
            model = spec["model"]
            if model.get("type", "BPE") != "BPE":
                raise _unsupported(where, "model", model["type"])
            for name in ("byte_fallback", "continuing_subword_prefix", "end_of_word_suffix", "dropout"):
                if model.get(name):
                    raise _unsupported(where, "a BPE model with", name)
            unk = model.get("unk_token")
            if model.get("fuse_unk") and unk is not None:
                raise _unsupported(where, "a BPE model with", "fuse_unk")
            self._vocab = model["vocab"]
            self._ranks, self._merged = _read_merges(model["merges"], self._vocab, where)
            self._ignore_merges = bool(model.get("ignore_merges"))
            patterns = _patterns(_steps(spec.get("pre_tokenizer"), "pretokenizers"), where)
            if (decoder := spec.get("decoder") or {}).get("type") != "ByteLevel":
                raise _unsupported(where, "decoder", decoder.get("type"))
            fields = AddedToken.__dataclass_fields__
            added = [AddedToken(**{name: token[name] for name in fields}) for token in spec.get("added_tokens") or ()]
            normalizers = _steps(spec.get("normalizer"), "normalizers")
            for step in normalizers:
                if step["type"] != "NFC":
                    raise _unsupported(where, "normalizer", step["type"])
            unknown = [] if unk is None else [self._vocab[unk]]       # Without it, the library drops unknown bytes too.
            processors = _steps(spec.get("post_processor"), "processors")
            add_bos = any("SpecialToken" in step["single"][0] for step in processors
                          if step["type"] == "TemplateProcessing")      # a special token before the text
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise SdftError(f"{where}: not a complete tokenizer.json ({type(error).__name__}: {error}); "
                            "copy or download it again") from error
        self._pretokenize = PreTokenizer(patterns, where)
        self._added = AddedTokens(added, nfc if normalizers else str)
        self._byte_ids = [[self._vocab[char]] if char in self._vocab else unknown for char in BYTE_CHARS]
        self._words: dict[str, list[int]] = {}                      # the ids of words seen before
        super().__init__(settings, {id: text for text, id in self._vocab.items()}, added, add_bos)

    def encode(self, text: str, special: bool = False) -> list[int]:
        ids: list[int] = []
        for part in self._added.split(replace_surrogates(text), special):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += chain.from_iterable(map(self._encode_word, self._pretokenize(part)))
        return ids

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        hidden = self.special_ids if skip_special else ()
        return b"".join([self._bytes_of(id) for id in map(int, ids) if id not in hidden]).decode("utf-8", "replace")

    def piece(self, id: int) -> str:
        return self._bytes_of(id).decode("utf-8", "backslashreplace")

    def spec(self) -> Mapping[str, Any]:
        return self._spec

    def _encode_word(self, word: str) -> list[int]:
        if (known := self._words.get(word)) is not None:
            return known
        ids = self._merge_word(word)
        if len(word) <= _LONGEST_CACHED:
            if len(self._words) >= _CACHED_WORDS:
                self._words.clear()
            self._words[word] = ids
        return ids

    def _merge_word(self, word: str) -> list[int]:
        data = word.encode()
        if self._ignore_merges:
            id = self._vocab.get("".join([BYTE_CHARS[byte] for byte in data]))
            if id is not None:
                return [id]
        ids = [id for byte in data for id in self._byte_ids[byte]]
        return merge(ids, self._ranks, self._merged)

    def _bytes_of(self, id: int) -> bytes:
        text = self._texts.get(id, "")              # an id beyond the vocabulary (padded embeddings): no text
        try:
            return bytes(map(_BYTE_OF.__getitem__, text))
        except KeyError:                            # an added token, which is written as itself
            return text.encode()


def _unsupported(where: str, part: str, name: object) -> SdftError:
    return SdftError(f"{where}: {part} {name} is not supported (supported: byte-level BPE as of GPT-2, SmolLM2, "
                     "Llama 3, Qwen; a sentencepiece model as tokenizer.model)")


def _read_merges(merges: Sequence, vocab: Mapping[str, int],
                 where: str) -> tuple[dict[tuple[int, int], int], list[int]]:
    ranks, merged = {}, []
    for rank, merge in enumerate(merges):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        try:
            ranks[vocab[left], vocab[right]] = rank
            merged.append(vocab[left + right])
        except KeyError as error:
            raise SdftError(f"{where}: merge {rank} ({left!r}, {right!r}) needs the token {error}, which the "
                            "vocabulary does not hold; copy or download the file again") from error
    return ranks, merged


def _patterns(steps: Sequence[Mapping[str, Any]], where: str) -> list[str]:
    """Return the regular expressions of a pre-tokeniser's steps, of which the last is ByteLevel, in order."""
    patterns = []
    for step in steps:
        kind = step["type"]
        if kind == "Split" and step["behavior"] == "Isolated" and "Regex" in step["pattern"]:
            patterns.append(step["pattern"]["Regex"])
        elif kind == "Digits":
            patterns.append(DIGIT if step["individual_digits"] else DIGIT + "+")
        elif kind == "ByteLevel" and not step["add_prefix_space"]:
            patterns += [GPT2] if step.get("use_regex", True) else []
        else:
            raise _unsupported(where, "pre_tokenizer", {"Split": f"Split with behavior {step.get('behavior')}",
                                                        "ByteLevel": "ByteLevel with add_prefix_space"}.get(kind, kind))
    if not steps or steps[-1]["type"] != "ByteLevel":
        raise _unsupported(where, "pre_tokenizer", "without ByteLevel as its last step")
    return patterns


def _steps(part: Mapping[str, Any] | None, name: str) -> Sequence[Mapping[str, Any]]:
    """Return the steps of a part of a tokenizer, which may be a Sequence of them, called `name`, or a single one."""
    return (part[name] if part["type"] == "Sequence" else [part]) if part else []
