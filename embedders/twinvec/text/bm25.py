"""BM25: sparse rows computed from words alone, for models without a lexical head.

A row contains everything of BM25 except the idf, which depends on the collection: the store keeps document frequencies
and multiplies a query's weights by its idf. Stored rows therefore stay valid whatever is added or deleted later.
"""

from __future__ import annotations

import functools
import hashlib
import os
import threading
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from twinvec.errors import ConfigurationError
from twinvec.vectors import Int32, Int64, SparseBatch

if TYPE_CHECKING:
    from regex import Pattern

    from twinvec.text.prompts import Role

# script -> the stemmer used by "auto"
_AUTO = {
    "ARABIC": "arabic",
    "ARMENIAN": "armenian",
    "CYRILLIC": "russian",
    "DEVANAGARI": "hindi",
    "GREEK": "greek",
    "LATIN": "english",
    "TAMIL": "tamil",
}
_LATIN = (
    "basque catalan czech danish dutch english esperanto estonian finnish french german hungarian indonesian irish "
    "italian lithuanian norwegian polish portuguese romanian sesotho spanish swedish turkish"
)
_SCRIPTS = {
    **{language: (script,) for script, language in _AUTO.items()},
    **dict.fromkeys(_LATIN.split(), ("LATIN",)),
    "nepali": ("DEVANAGARI",),
    "persian": ("ARABIC",),
    "serbian": ("CYRILLIC", "LATIN"),
    "yiddish": ("HEBREW",),
}
# Question and function words, left out of queries: answers seldom contain them, so their idf is high without being
# meaningful. nDCG@10 of English questions with and without them: .598, .662 (faq-en); .703, .763 (the shipped FAQ).
_STOP_WORDS = {
    "english": """a about after all also am an and any are aren as at be because been before being between both but by
        can cannot could couldn did didn do does doesn doing don during each few for from had hadn has hasn have haven
        having he her here him his how i if in into is isn it its just ll may me might more most must my no nor not of
        on only or other our own s shall she should shouldn so some such t than that the their them then there these
        they this those through to too until ve very was wasn we were weren what when where which while who whom whose
        why will with won would wouldn you your""",
    "russian": """а без бы был была были было быть в вам вас во вот все всего всех вы где да для до его ее если есть еще
        же за зачем и из или им их к как какая какие какой какую ко когда кто куда ли либо меня мне могу можем может
        можно мы на над надо нам нас не него нее ней нельзя нет ни них но ну нужно о об он она они оно от откуда по под
        почему при про с сам себе себя сколько со так также такой там тебе тебя тем то того тоже той том тот ту ты у
        уже чего чей чем через что чтобы эта эти это этого этой этом этот эту я""",
}
_LONGEST = 128  # characters of a word that count: a checksum is a term, a megabyte of base64 is not
_REMEMBERED = 2**17  # words per language; about 30 MB
_ANALYSIS = 2  # version of the text analysis; stored rows with another number were analysed differently
_MISSING = "sparse=\"bm25\" needs optional packages: pip install 'twinvec[bm25]'"
_JOINERS = "\u00ad\u200c\u200d\u2060\ufeff"  # soft hyphens and the like, within words
# variation selectors are not part of a word
_MARKS = rf"[[\p{{Mn}}\p{{Mc}}{_JOINERS}]--[\uFE00-\uFE0F\U000E0100-\U000E01EF]]"
_UNSPACED = (
    r"[[\p{L}\p{Nl}\p{InCJK_Radicals_Supplement}\p{InKangxi_Radicals}]&&[\p{scx=Han}\p{scx=Hira}\p{scx=Kana}"
    r"\p{Bopomofo}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]]"
)
# accents that NFKC leaves separate: Russian stress marks, and the dot of a lower-cased Turkish İ
_FOLDED = {**dict.fromkeys(map(ord, _JOINERS + "\u0300\u0301\u0307")), ord("ё"): "е"}


@dataclass(frozen=True)
class Bm25:
    """Word weights: the meaning of ``sparse="bm25"``.

    A document's weight of a term is ``tf (k1 + 1) / (tf + k1 (1 - b + b length / average_length))``, where ``tf`` is
    its count and ``length`` the total number of terms; a query's weight is its count. Once the store has multiplied the
    query side by its ``idf = ln(1 + (N - df + 0.5) / (df + 0.5))``, the inner product is BM25 (Robertson and Zaragoza
    2009, The Probabilistic Relevance Framework: BM25 and Beyond, section 3.4; this idf, which is never negative, is
    Lucene's).

    Words are runs of letters and digits, stemmed by Snowball. Chinese, Japanese, Thai, Lao, Khmer and Burmese, which do
    not separate words by spaces, and Korean, whose particles are attached to words, are split into overlapping pairs of
    characters. English and Russian function words are left out of queries, unless a query contains nothing else.

    Attributes:
        language: a stemmer's name, such as "german", for words in its script; other words, and all words under "auto",
            are stemmed by their script: Latin as English, Cyrillic as Russian, Devanagari as Hindi, likewise Arabic,
            Armenian, Greek and Tamil; others are not stemmed.
        k1: how slowly the count saturates, from 0 (a term counts once) to 100.
        b: how strongly long documents are penalised, from 0 to 1.
        average_length: terms of a typical document. Fixed rather than measured: a stored weight must not depend on what
            else is stored. Set it for documents far from 60 to 250 words, and rather too low than too high: on faq-en
            (169 terms on average) nDCG@10 is .662 at half of the true average, .660 at 1x, .643 at 2x, .625 at 4x.

    Raises:
        ConfigurationError: there is no stemmer for the language, or a number is out of range.
    """

    language: str = "auto"
    k1: float = 1.2
    b: float = 0.75
    average_length: float = 128.0

    def __post_init__(self) -> None:
        if self.language != "auto" and self.language not in _SCRIPTS:
            raise ConfigurationError(f"BM25: language={self.language!r} is not one of {_languages()}")
        for name, low, high in (("k1", 0, 100), ("b", 0, 1), ("average_length", 1, 1e9)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
                raise ConfigurationError(f"BM25: {name}={value!r} is not a number from {low} to {high:.0f}")
            object.__setattr__(self, name, float(value))

    @classmethod
    def parse(cls, sparse: str | None) -> Bm25 | None:
        """Parse "bm25", "bm25:german" or "bm25:german,k1=0.9,b=0.4,average_length=300"; any part may be left out.

        Returns:
            None if ``sparse`` names another source.

        Raises:
            ConfigurationError: a part is not one of these, or appears twice.
        """
        head, colon, options = (sparse or "").lower().partition(":")
        if head != "bm25":
            return None
        given: dict[str, Any] = {}
        names = {*(field.name for field in fields(cls)), "analysis"}
        for part in options.split(",") if colon else ():
            before, equals, after = part.partition("=")
            name, value = (before.strip(), after.strip()) if equals else ("language", before.strip())
            if name == "analysis" and value != str(_ANALYSIS):
                raise ConfigurationError(
                    f"sparse={sparse!r}: this version of TwinVec analyses texts differently (analysis={_ANALYSIS}): "
                    "its rows are not compatible with those. Omit analysis, and ingest into a new store"
                )
            try:
                known = name in names - given.keys()
                given[name] = value if name == "language" else float(value)
            except ValueError:
                known = False
            if not known:
                raise ConfigurationError(
                    f"sparse={sparse!r}: {part!r} is invalid. BM25 takes bm25[:LANGUAGE][,k1=NUMBER][,b=NUMBER]"
                    f"[,average_length=NUMBER], each once, with a language of {_languages()}"
                )
        given.pop("analysis", None)
        return cls(**given)

    def __str__(self) -> str:
        """Return the form that ``parse`` reads, with every number spelled out, so that no later default changes its
        meaning.

        ``analysis`` is the version of TwinVec's text analysis.
        """
        numbers = [f"{name}={getattr(self, name)!r}".removesuffix(".0") for name in ("k1", "b", "average_length")]
        return ",".join([f"bm25:{self.language}", *numbers, f"analysis={_ANALYSIS}"])

    def prepare(self) -> None:
        """Load the stemmers and patterns.

        Raises:
            ConfigurationError: a package is missing, or PyStemmer is too old for the language.
        """
        _patterns()
        _vocabulary(self.language)

    def weigh(self, role: Role, texts: Sequence[str]) -> tuple[SparseBatch, Int32]:
        """Return a sparse row per text, and its number of terms, int32 [n]; see the two methods below."""
        return self.weigh_queries(texts) if role == "query" else self.weigh_documents(texts)

    def weigh_documents(self, texts: Sequence[str]) -> tuple[SparseBatch, Int32]:
        """Return a sparse row per text (empty for a text without words), and its number of terms, int32 [n]."""
        rows = [counts for counts, _ in self._count(texts)]
        indptr, ids, tf = _csr(rows)
        lengths = _lengths(rows)
        norms = self.k1 * (1 - self.b + self.b * lengths / self.average_length)
        weights = tf * ((self.k1 + 1) / (tf + np.repeat(norms, np.diff(indptr))))
        return SparseBatch(indptr, ids, weights.astype(np.float32)), lengths

    def weigh_queries(self, texts: Sequence[str]) -> tuple[SparseBatch, Int32]:
        """Return a sparse row per text, without function words, and its total number of terms, int32 [n]."""
        counted = self._count(texts)
        rows = [{i: n for i, n in counts.items() if i not in stops} or counts for counts, stops in counted]
        indptr, ids, tf = _csr(rows)
        return SparseBatch(indptr, ids, tf.astype(np.float32)), _lengths([counts for counts, _ in counted])

    def _count(self, texts: Sequence[str]) -> list[tuple[dict[int, int], set[int]]]:
        vocabulary = _vocabulary(self.language)
        return [vocabulary.count(text) for text in texts]

    def term(self, number: int) -> str:
        """Return the stemmed term of an id if this process has seen it recently, otherwise "#" and the id."""
        return _vocabulary(self.language).terms.get(number, f"#{number}")


def _lengths(rows: Iterable[Mapping[int, int]]) -> Int32:
    return np.array([sum(row.values()) for row in rows], dtype=np.int32)


def _csr(rows: Sequence[Mapping[int, int]]) -> tuple[Int64, Int32, NDArray[np.float64]]:
    """Return the row bounds, their sorted keys, and the corresponding counts."""
    sizes = np.array([len(row) for row in rows], dtype=np.int64)
    ids = np.fromiter((i for row in rows for i in row), dtype=np.int64)
    counts = np.fromiter((n for row in rows for n in row.values()), dtype=np.float64)
    order = np.lexsort((ids, np.repeat(np.arange(len(rows)), sizes)))
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)]), ids[order].astype(np.int32), counts[order]


def term_id(term: str) -> int:
    """Return the column of a term, in [0, 2**31 - 1): the same in every process, on every platform, forever."""
    # among a million distinct terms, 1 in 2,000 shares its column with another
    return int.from_bytes(hashlib.blake2b(term.encode(), digest_size=8).digest(), "big") % (2**31 - 1)


class _Vocabulary(dict[str, int]):
    """Word as written -> id of its term, ``~id`` for a stop word; filled on demand, bounded, thread safe.

    Attributes:
        terms: id -> stemmed term.
    """

    def __init__(self, language: str) -> None:
        super().__init__()
        self.terms: dict[int, str] = {}
        self._languages = {**_AUTO, **dict.fromkeys(_SCRIPTS.get(language, ()), language)}
        self._stem = _stemmers(set(self._languages.values()))
        self._stop_words = {name: frozenset(words.split()) for name, words in _STOP_WORDS.items()}
        self._lock = threading.Lock()

    def count(self, text: str) -> tuple[dict[int, int], set[int]]:
        """Return how often each term occurs in a text, and which of them are stop words."""
        counts: dict[int, int] = {}
        stops = set()
        for word, n in Counter(_words(text)).items():
            number = self[word]
            if number < 0:
                number = ~number
                stops.add(number)
            counts[number] = counts.get(number, 0) + n
        return counts, stops

    def __missing__(self, word: str) -> int:
        if len(word) > _LONGEST:
            return self[word[:_LONGEST]]
        folded = _fold(word)
        language = self._languages.get(_script(folded), "")
        with self._lock:  # a Stemmer is not thread safe
            term = (self._stem[language](folded) if language else "") or folded  # some words consist only of endings
            number = term_id(term)
            if len(self) >= _REMEMBERED:
                self.clear()
                self.terms.clear()
            self.terms.setdefault(number, term)
            self[word] = signed = ~number if folded in self._stop_words.get(language, ()) else number
        return signed


@functools.cache
def _vocabulary(language: str) -> _Vocabulary:
    return _Vocabulary(language)


if hasattr(os, "register_at_fork"):  # another thread may hold its lock at the fork
    os.register_at_fork(after_in_child=_vocabulary.cache_clear)


def _stemmers(languages: Iterable[str]) -> dict[str, Callable[[str], str]]:
    try:
        import Stemmer
    except ImportError as error:
        raise ConfigurationError(_MISSING) from error
    if missing := sorted(set(languages) - set(Stemmer.algorithms())):
        raise ConfigurationError(f"this PyStemmer cannot stem {', '.join(missing)}: pip install -U 'PyStemmer>=3.1'")
    return {language: Stemmer.Stemmer(language, 0).stemWord for language in languages}


def _languages() -> str:
    return f"auto, {', '.join(sorted(_SCRIPTS))}"


def _fold(word: str) -> str:
    folded = unicodedata.normalize("NFKC", word).casefold()
    return unicodedata.normalize("NFKC", folded).translate(_FOLDED)


def _script(word: str) -> str:
    """Return the script of the first letter; "" if there is no letter, or no stemmer for its script."""
    letter = _patterns()[3].search(word)
    return (letter.lastgroup or "") if letter else ""


def _words(text: str) -> list[str]:
    """Return the words of a text in no particular order, and pairs of characters for scripts without spaces."""
    word, run, character, _ = _patterns()
    pairs: list[str] = []
    if not text.isascii():
        for found in run.findall(text):
            characters = character.findall(unicodedata.normalize("NFKC", found))
            pairs += characters if len(characters) == 1 else map("".join, pairwise(characters))
        if pairs:
            text = run.sub(" ", text)
    words: list[str] = word.findall(text)
    return words + pairs


@functools.cache
def _patterns() -> tuple[Pattern[str], Pattern[str], Pattern[str], Pattern[str]]:
    """Return patterns for a word, a run without spaces, one of its characters with vowel signs, and a letter.

    The letter's group is named after its script.

    Raises:
        ConfigurationError: the package is missing.
    """
    try:
        import regex
    except ImportError as error:
        raise ConfigurationError(_MISSING) from error
    known = sorted({script for scripts in _SCRIPTS.values() for script in scripts})
    return (
        # without marks, words in Indic scripts and with decomposed accents would fall apart
        regex.compile(rf"[\p{{L}}\p{{N}}][\p{{L}}\p{{N}}{_MARKS}]*", regex.V1),
        regex.compile(rf"{_UNSPACED}[{_UNSPACED}{_MARKS}]{{0,255}}", regex.V1),  # NFKC: quadratic time on runs of marks
        regex.compile(rf"{_UNSPACED}[{_MARKS}]*", regex.V1),
        regex.compile(
            "|".join([rf"(?P<{script}>[\p{{{script}}}&&\p{{L}}])" for script in known] + [r"\p{L}"]), regex.V1
        ),
    )
