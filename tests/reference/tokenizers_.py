"""Tiny real ``tokenizer.json`` files of the three kinds the supported checkpoints use.

They are real `tokenizers` pipelines (normaliser, pre-tokeniser, model, template, decoder), only with a few
hundred pieces. Every writer leaves ``tokenizer.json``, ``tokenizer_config.json`` and
``special_tokens_map.json`` in the folder.
"""

import itertools
import json
import string
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers


def _words(text: str) -> list[str]:
    return text.split()


WORDS_EN = _words("the of and to in is a what capital china russia how implement quick sort python query given gravity")
WORDS_RU = _words("и в на не что столица россии москва как поиск запрос текст это сортировка сила притяжения")
WORDS_ZH = _words("的 是 中国 首都 北京 在 哪儿 快 排 算法 介绍 如何 实现 模型")
PIECES_EN = _words("ing ed er ion ment able es ly tion al")
PIECES_RU = _words("ого ть ся ение ств ов ами ный")
CYRILLIC = "абвгдеёжзийклмнопрстуфхцчшщъыьэюя"
PUNCTUATION = ".,:;!?-–'\"()/。，？！：*+=%&#@_<>[]"

CORPUS = [
    "What is the capital of China? The capital of Russia is Moscow.",
    "Instruct: Given a query, retrieve relevant passages\nQuery: how to implement quick sort in python?",
    "Gravity is a force that attracts two bodies towards each other.",
    "столица России это Москва, а столица Китая это Пекин",
    "как реализовать быструю сортировку на языке python",
    "中国的首都在哪儿 北京 快排算法介绍",
]


def write_xlmr_tokenizer(folder: Path, vocab_size: int = 600) -> None:
    """XLM-R kind: Unigram over Metaspace, ``<s>`` 0, ``<pad>`` 1, ``</s>`` 2, ``<unk>`` 3.

    ``<mask>`` is the last id. Every word is there with and without the word-start mark (``▁the``, ``the``):
    such a pair of ids decodes to the same string.
    """
    words = WORDS_EN + WORDS_RU + WORDS_ZH
    pieces = [mark + word for word in words for mark in ("▁", "")] + PIECES_EN + PIECES_RU
    characters = list("▁" + string.ascii_letters + string.digits + CYRILLIC + CYRILLIC.upper() + PUNCTUATION)
    wanted = _fill(["<s>", "<pad>", "</s>", "<unk>", *characters, *pieces], vocab_size - 1)
    scores = [0.0 if piece.startswith("<") and len(piece) > 1 else -10.0 / len(piece) ** 0.5 for piece in wanted]
    tokenizer = Tokenizer(models.Unigram([*zip(wanted, scores, strict=True), ("<mask>", 0.0)], 3, False))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    tokenizer.post_processor = _template(tokenizer, ["<s>"], ["</s>"])
    special = {
        "bos": "<s>",
        "eos": "</s>",
        "cls": "<s>",
        "sep": "</s>",
        "pad": "<pad>",
        "unk": "<unk>",
        "mask": "<mask>",
    }
    _save(tokenizer, folder, special, "XLMRobertaTokenizer")


def write_bpe_tokenizer(
    folder: Path,
    *,
    bos: str = "<s>",
    eos: str = "</s>",
    bos_id: int = 1,
    eos_id: int = 2,
    add_bos: bool = True,
    add_eos: bool = True,
    pad: str = "</s>",
    vocab_size: int = 600,
) -> None:
    """Byte-level BPE; the defaults are Giga 0826 (pad is eos), ``pad="<unk>"`` (id 0) is the original Giga.

    ``<unk>`` and a ``pad`` that is a token of its own take the lowest free ids.
    """
    special = _with_free_ids({bos_id: bos, eos_id: eos}, ["<unk>", pad])
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = _template(tokenizer, [bos] * add_bos, [eos] * add_eos)
    _save(tokenizer, folder, {"bos": bos, "eos": eos, "pad": pad, "unk": "<unk>"}, "PreTrainedTokenizerFast")


def write_wordpiece_tokenizer(folder: Path, *, vocab_size: int = 600) -> None:
    """BERT kind: lower-casing WordPiece, ``[PAD]`` 0, ``[UNK]`` 1, ``[CLS]`` 2, ``[SEP]`` 3, ``[MASK]`` 4."""
    characters = list(string.ascii_lowercase + string.digits + CYRILLIC + PUNCTUATION + "".join(WORDS_ZH))
    continued = ["##" + piece for piece in [*characters, *PIECES_EN, *PIECES_RU]]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    wanted = _fill([*special, *characters, *continued, *WORDS_EN, *WORDS_RU], vocab_size)
    vocab = {piece: index for index, piece in enumerate(wanted)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token=special[1]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = _template(tokenizer, ["[CLS]"], ["[SEP]"])
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    _save(tokenizer, folder, names, "BertTokenizer")


def _fill(pieces: list[str], vocab_size: int) -> list[str]:
    """The distinct pieces, in order, filled up to ``vocab_size`` with two- and three-letter syllables."""
    distinct = list(dict.fromkeys(pieces))
    if len(distinct) > vocab_size:
        raise ValueError(f"vocab_size {vocab_size} is below the {len(distinct)} pieces every tiny tokenizer needs")
    pairs = ("".join(pair) for pair in itertools.product("bcdfghklmnprstvw", "aeiou"))
    triples = ("".join(triple) for triple in itertools.product("bcdfghklmnprstvw", "aeiou", string.ascii_lowercase))
    known = set(distinct)
    fillers = (piece for piece in itertools.chain(pairs, triples) if piece not in known)
    return distinct + list(itertools.islice(fillers, vocab_size - len(distinct)))


def _with_free_ids(placed: dict[int, str], others: list[str]) -> list[str]:
    """Special tokens by id; ``others`` and, for the holes that remain, ``<reserved_N>`` take the free ids."""
    free = (index for index in itertools.count() if index not in placed)
    slots = dict(placed)
    for token in others:
        if token not in slots.values():
            slots[next(free)] = token
    return [slots.get(index, f"<reserved_{index}>") for index in range(max(slots) + 1)]


def _template(tokenizer: Tokenizer, before: list[str], after: list[str]) -> processors.TemplateProcessing:
    special = [(token, tokenizer.token_to_id(token)) for token in dict.fromkeys(before + after)]
    single = " ".join([*before, "$A", *after])
    pair = " ".join([*before, "$A", *after, *after, "$B", *after])
    return processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)


def _save(tokenizer: Tokenizer, folder: Path, special: dict[str, str], tokenizer_class: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokens: dict[str, Any] = {f"{name}_token": token for name, token in special.items()}
    extra = {"tokenizer_class": tokenizer_class, "model_max_length": 8192, "padding_side": "right"}
    for name, content in {"special_tokens_map.json": tokens, "tokenizer_config.json": tokens | extra}.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=2), encoding="utf-8")
