"""From text to token ids: the checkpoint's fast tokenizer, the prompt in front, the end cut at the limit."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from twinvec.checkpoints.fields import TOKENIZER
from twinvec.checkpoints.files import Checkpoint
from twinvec.errors import CheckpointError, CheckpointNotFoundError, InvalidTextError, PromptError, TwinVecError
from twinvec.vectors import Int64, Spans

_SPECIAL_NAMES = ("bos_token", "eos_token", "cls_token", "sep_token", "pad_token", "unk_token", "mask_token")


@dataclass(frozen=True, eq=False)
class TokenizedText:
    """One text as the model will see it.

    Attributes:
        ids: int32 [tokens], prompt and special tokens included.
        prompt_length: leading special tokens and prompt tokens; 0 without a prompt.
        full_length: tokens before the cut; greater than ``len(ids)`` if the text was cut.
        multi: what vectors of its single tokens are requested as well, if any; see ``Key``.
        spans: the first token of each part that has a row of its own, and the one after its last.
    """

    ids: NDArray[np.int32]
    prompt_length: int
    full_length: int
    multi: str = ""
    spans: tuple[tuple[int, int], ...] = ()

    @property
    def truncated(self) -> bool:
        """Return whether the text was cut."""
        return self.full_length > len(self.ids)


class TextToken(NamedTuple):
    """One token: ``start`` and ``end`` in characters of its text; None for a special token."""

    id: int
    token: str
    start: int | None = None
    end: int | None = None


class TextTokenizer:
    """A checkpoint's tokenizer, exactly as described by its ``tokenizer.json``.

    Thread safe; ``encode`` releases the GIL and runs on the tokenizer library's own threads.
    """

    def __init__(self, checkpoint: Checkpoint, max_length: int, *, lower_case: bool = False) -> None:
        from tokenizers import Tokenizer

        path = checkpoint.folder / "tokenizer.json"
        if not path.is_file():
            raise CheckpointNotFoundError(
                f"{checkpoint.name}: no tokenizer.json. Create one with transformers: "
                f"AutoTokenizer.from_pretrained({str(checkpoint.folder)!r}).save_pretrained(...)"
            )
        with _guarded(lambda error: CheckpointError(f"{path}: cannot be read ({error}). Download it again.")):
            self._tokenizer = Tokenizer.from_file(str(path))
        # the library gives no access to this field; a quote within a vocabulary entry would be escaped
        unknown = re.search(rb'"unk_id"\s*:\s*(\d+)', path.read_bytes())
        self._unigram_unknown = int(unknown[1]) if unknown else None
        self._path = path
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.max_length = max_length
        self._lower_case = lower_case
        self._special_names = _special_tokens(checkpoint)
        with _guarded(lambda error: CheckpointError(f"{path}: produces no tokens ({error}). Download it again.")):
            if not self._tokenizer.get_vocab_size(with_added_tokens=True):
                raise ValueError("its vocabulary is empty")
            self._head, self._tail = self._outer_specials(checkpoint.json("tokenizer_config.json", TOKENIZER))
            if max([*self._head, *self._tail], default=0) >= self.vocabulary_size:
                raise ValueError("its post-processor adds ids that its vocabulary does not have")

    def encode(self, texts: Sequence[str], prompt: str = "", max_length: int | None = None) -> list[TokenizedText]:
        """Tokenise ``prompt + text`` for each text; only the end of the text is ever cut.

        Args:
            texts: without the prompt.
            prompt: goes before each text.
            max_length: tokens per text, prompt and special tokens included; default: the tokenizer's own limit.

        Raises:
            PromptError: the prompt leaves no room for a text.
        """
        limit = self.max_length if max_length is None else max_length
        prompt_length = len(self._head) + len(self._ids([prompt])[0]) if prompt else 0
        if max(prompt_length, len(self._head)) + len(self._tail) >= limit:
            raise PromptError(
                f"the prompt and the special tokens take all {limit} tokens, which leaves no room for a text "
                f"within max_length={self.max_length}: shorten the instruction or raise max_length"
            )
        encoded = []
        room = limit - len(self._head) - len(self._tail)
        for ids in self._ids([prompt + text for text in texts]):
            full = [*self._head, *ids[:room], *self._tail]
            length = len(ids) + len(self._head) + len(self._tail)
            encoded.append(TokenizedText(np.array(full, dtype=np.int32), prompt_length, length))
        return encoded

    def encode_spans(
        self, texts: Sequence[str], spans: Sequence[Spans], prompt: str = "", max_length: int | None = None
    ) -> list[TokenizedText]:
        """Tokenise ``prompt + text`` for each text, and find the tokens of its spans.

        A token belongs to the spans that have its last character. A text is without any tokens where one of its spans
        is: then no vector is defined for it.

        Args:
            texts: see ``encode``.
            spans: characters of each text, from the first to the one behind the last.
            prompt: see ``encode``.
            max_length: see ``encode``.
        """
        offsets = self.offsets([prompt + text for text in texts])
        encoded = zip(self.encode(texts, prompt, max_length), offsets, spans, strict=True)
        return [self._located(text, places, np.array(own) + len(prompt)) for text, places, own in encoded]

    def _located(self, text: TokenizedText, offsets: Int64, spans: Int64) -> TokenizedText:
        last = np.maximum.accumulate(np.maximum(offsets[:, 1] - 1, offsets[:, 0]))
        found = np.searchsorted(last, spans) + len(self._head)
        if (found[:, 0] == found[:, 1]).any():
            return TokenizedText(text.ids[:0], 0, 0)
        return replace(text, spans=tuple((first, end) for first, end in found.tolist()))

    def offsets(self, texts: Sequence[str]) -> list[Int64]:
        """Return int64 [tokens, 2] per text: the start and end of each token, in characters.

        Nothing is cut; special tokens are left out.
        """
        with _guarded(self._unreadable):
            encoded = self._tokenizer.encode_batch(self._cased(texts), add_special_tokens=False)
        found = [np.array(e.offsets, dtype=np.int64).reshape(-1, 2) for e in encoded]
        return [_unlowered(o, text) if self._lower_case else o for o, text in zip(found, texts, strict=True)]

    def encodings(self, texts: Sequence[str], *, specials: bool = True) -> list[list[TextToken]]:
        """Return the tokens of each text, without cutting; on request with the special tokens around each text."""
        head, tail = ([TextToken(i, self.tokens[i]) for i in end if specials] for end in (self._head, self._tail))
        encoded = self._tokenizer.encode_batch(self._cased(texts), add_special_tokens=False)
        return [
            [*head, *map(TextToken, e.ids, e.tokens, offsets[:, 0].tolist(), offsets[:, 1].tolist()), *tail]
            for e, offsets in zip(encoded, self.offsets(texts), strict=True)
        ]

    def decode(self, ids: Sequence[int], *, skip_specials: bool = True) -> str:
        """Decode token ids."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=skip_specials)
        return text

    def has_specials(self, ids: Sequence[int]) -> bool:
        """Return whether ids begin and end with the special tokens that this tokenizer puts around every text."""
        head, tail = self._head, self._tail
        inner = len(ids) - len(tail)
        return inner >= len(head) and list(ids[: len(head)]) == head and list(ids[inner:]) == tail

    def overhead(self, prompt: str = "") -> int:
        """Return how many special tokens and prompt tokens are added to each text."""
        return len(self._head) + len(self._tail) + (len(self._ids([prompt])[0]) if prompt else 0)

    @cached_property
    def vocabulary_size(self) -> int:
        """Return the highest token id plus one."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    def id_of(self, token: str) -> int | None:
        """Return the id of a vocabulary entry; None if there is none."""
        return self._tokenizer.token_to_id(token)

    @property
    def pad_id(self) -> int | None:
        """Return the id of the pad token; None if there is none."""
        return self._tokenizer.token_to_id(self._special_names.get("pad_token", ""))

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Return the ids that never appear in sparse rows: all special tokens and the unknown token."""
        added = {i for i, t in self._tokenizer.get_added_tokens_decoder().items() if t.special}
        named = {self._tokenizer.token_to_id(t) for t in self._special_names.values()}
        model = self._tokenizer.model
        unknown = {self._unigram_unknown, self._tokenizer.token_to_id(getattr(model, "unk_token", None) or "")}
        return frozenset(i for i in added | named | unknown if i is not None)

    @cached_property
    def tokens(self) -> list[str]:
        """Return the vocabulary entry of every id."""
        return [self._tokenizer.id_to_token(i) or "" for i in range(self.vocabulary_size)]

    @cached_property
    def token_texts(self) -> list[str]:
        """Return the decoded string of every id; ``<id>`` for a fragment of a character, which has none."""
        ids = [[i] for i in range(self.vocabulary_size)]
        with _guarded(lambda error: CheckpointError(f"{self._path}: its decoder fails ({error})")):
            decoded = self._tokenizer.decode_batch(ids, skip_special_tokens=False)
        return [f"<{i}>" if "\ufffd" in text else text for i, text in enumerate(decoded)]

    @cached_property
    def id_keys(self) -> Int64:
        """Return int64 [vocabulary]: each id itself, -1 for special tokens."""
        keys = np.arange(self.vocabulary_size, dtype=np.int64)
        keys[sorted(self.special_ids)] = -1
        return keys

    @cached_property
    def surface_keys(self) -> Int64:
        """Return int64 [vocabulary]: the lowest id with the same decoded string, -1 for special tokens."""
        keys: Int64 = self.id_keys.copy()
        lowest: dict[str, int] = {}
        for i, text in enumerate(self.token_texts):
            if keys[i] >= 0:
                keys[i] = lowest.setdefault(text, i)
        return keys

    def _ids(self, texts: list[str]) -> list[list[int]]:
        with _guarded(self._unreadable):
            return [e.ids for e in self._tokenizer.encode_batch_fast(self._cased(texts), add_special_tokens=False)]

    def _unreadable(self, error: BaseException) -> InvalidTextError:
        return InvalidTextError(
            f"{self._path}: the tokenizer fails on one of these texts ({error}); its regular expressions may give "
            "up on long runs of a character: shorten them"
        )

    def _cased(self, texts: Sequence[str]) -> list[str]:
        return [text.lower() for text in texts] if self._lower_case else list(texts)

    def _outer_specials(self, config: dict[str, Any]) -> tuple[list[int], list[int]]:
        probe = self._tokenizer.encode("a", add_special_tokens=True)
        mask, ids = probe.special_tokens_mask, probe.ids
        inner = [i for i, special in enumerate(mask) if not special] or [len(ids)]
        head, tail = list(ids[: inner[0]]), list(ids[inner[-1] + 1 :])
        for end, flag, name in ((head, "add_bos_token", "bos_token"), (tail, "add_eos_token", "eos_token")):
            if config.get(flag) is not True or end or name not in self._special_names:
                continue
            token = self._tokenizer.token_to_id(self._special_names[name])
            if token is None:
                raise CheckpointError(
                    f"{self._path}: {flag} asks for {self._special_names[name]!r}, which is not in the vocabulary"
                )
            end.append(token)
        return head, tail


@contextlib.contextmanager
def _guarded(make: Callable[[BaseException], TwinVecError]) -> Iterator[None]:
    """Convert what the tokenizers library raises (bare Exceptions and panics) into our errors."""
    try:
        yield
    except (TwinVecError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise make(error) from error


def _unlowered(offsets: Int64, text: str) -> Int64:
    """Map offsets in the lower-cased text back to the text: some letters become two ("İ")."""
    lengths = [len(character.lower()) for character in text]
    if sum(lengths) == len(text):
        return offsets
    origin = np.repeat(np.arange(len(text), dtype=np.int64), lengths)
    starts, ends = offsets[:, 0], offsets[:, 1]
    inner = np.append(origin, len(text))
    return np.stack([inner[starts], np.where(ends > starts, inner[ends - 1] + 1, inner[starts])], axis=1)


def _special_tokens(checkpoint: Checkpoint) -> dict[str, str]:
    found: dict[str, str] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        for name in _SPECIAL_NAMES:
            token = checkpoint.json(file).get(name)
            if isinstance(token, dict):
                token = token.get("content")
            if isinstance(token, str):
                found[name] = token
    return found
