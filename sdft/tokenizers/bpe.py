"""Byte-level byte-pair encoding (Sennrich et al. 2016; on bytes: Radford et al. 2019), from a tokenizer.json.

    text ─added tokens→ ordinary text ─NFC?→ ─pre-tokeniser→ words ─UTF-8→ bytes ─merges→ ids

    "lower"   l o w e r        The pair with the lowest rank merges first, the leftmost if it occurs more than once,
              lo w e r         (l,o) rank 3 · (e,r) rank 1 …
              lo w er …        until no adjacent pair has a rank.

The ids equal those of the `tokenizers` library. A tokenizer.json with unsupported parts is refused by name.
"""
from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

from sdft.files import write_text
from sdft.tokenizers.bpe_spec import read_spec
from sdft.tokenizers.pretokenize import Memo, PreTokenizer, nfc, replace_surrogates
from sdft.tokenizers.tokenizer import AddedTokens, Settings, Tokenizer

_CACHED_WORDS = 1 << 17


def _byte_chars() -> str:
    """Return the character that represents each byte in a vocabulary: itself if printable, else one from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return "".join(chr(byte if byte in printable else next(others)) for byte in range(256))


BYTE_CHARS = _byte_chars()
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
        parts = read_spec(spec, where)
        self._spec = spec
        self._vocab = parts.vocab
        self._ranks, self._merged = parts.ranks, parts.merged
        self._ignore_merges = parts.ignore_merges
        self._pretokenize = PreTokenizer(parts.patterns, where)
        self._added = AddedTokens(parts.added, nfc if parts.nfc else str)
        unknown = [] if parts.unk_id is None else [parts.unk_id]    # Without it, the library drops unknown bytes too.
        self._byte_ids = [[self._vocab[char]] if char in self._vocab else unknown for char in BYTE_CHARS]
        self._texts = {id: text for text, id in parts.vocab.items()} | {t.id: t.content for t in parts.added}
        self.vocab_size = max(self._texts) + 1
        self._bytes = Memo(self._token_bytes)
        self._words = Memo(self._encode_word, _CACHED_WORDS)
        super().__init__(settings, parts.added, parts.add_bos)

    def encode(self, text: str, special: bool = False) -> list[int]:
        ids: list[int] = []
        for part in self._added.split(replace_surrogates(text), special):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += chain.from_iterable(map(self._words.__getitem__, self._pretokenize(part)))
        return ids

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        hidden = self.special_ids if skip_special else ()
        return b"".join([self._bytes[id] for id in map(int, ids) if id not in hidden]).decode("utf-8", "replace")

    def piece(self, id: int) -> str:
        return self._bytes[id].decode("utf-8", "backslashreplace")

    def token_id(self, text: str) -> int | None:
        id = self._vocab.get(text)
        return id if id is not None else next((t.id for t in self.added.values() if t.content == text), None)

    def save(self, folder: Path) -> None:
        write_text(Path(folder) / "tokenizer.json", json.dumps(self._spec, ensure_ascii=False))
        self._save_settings(folder)

    def _encode_word(self, word: str) -> list[int]:
        data = word.encode()
        if self._ignore_merges:
            id = self._vocab.get("".join([BYTE_CHARS[byte] for byte in data]))
            if id is not None:
                return [id]
        ids = [id for byte in data for id in self._byte_ids[byte]]
        return merge(ids, self._ranks, self._merged)

    def _token_bytes(self, id: int) -> bytes:
        text = self._texts.get(id, "")              # an id beyond the vocabulary (padded embeddings): no text
        try:
            return bytes(map(_BYTE_OF.__getitem__, text))
        except KeyError:                            # an added token, which is written as itself
            return text.encode()
