"""TextTokenizer against the tokenizers library itself, driven by hand."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from reference.checkpoint_files import write_json
from reference.tokenizers_ import write_bpe_tokenizer, write_wordpiece_tokenizer, write_xlmr_tokenizer
from twinvec.checkpoints.hub import open_checkpoint
from twinvec.errors import CheckpointError, CheckpointNotFoundError, ConfigurationError, PromptError
from twinvec.text.tokenizer import TextTokenizer

TEXTS = [
    "what is the capital of China?",
    "как реализовать быструю сортировку на языке python",
    "中国的首都在哪儿",
    "  two  spaces\nand a line\t",
    "",
    "😀 emoji, ελληνικά, é",
]
PROMPTS = ["", "query: ", "Instruct: Given a query, retrieve relevant passages\nQuery: "]
WRITERS: dict[str, Callable[[Path], None]] = {
    "unigram": write_xlmr_tokenizer,
    "bpe": write_bpe_tokenizer,
    "wordpiece": write_wordpiece_tokenizer,
}


@pytest.fixture(scope="module", params=WRITERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    WRITERS[request.param](path)
    write_json(path / "config.json", {})
    return path


@pytest.fixture
def bpe(tmp_path: Path) -> Path:
    write_bpe_tokenizer(tmp_path)
    write_json(tmp_path / "config.json", {})
    return tmp_path


def make(folder: Path, max_length: int = 512, **options: Any) -> TextTokenizer:
    return TextTokenizer(open_checkpoint(str(folder)), max_length, **options)


def by_hand(folder: Path) -> Tokenizer:
    tokenizer: Tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def set_json(file: Path, **values: Any) -> None:
    write_json(file, json.loads(file.read_text(encoding="utf-8")) | values)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_ids_are_those_of_tokenizer_json_for_prompt_and_text(folder: Path, prompt: str) -> None:
    encoded = make(folder).encode(TEXTS, prompt)
    assert [t.ids.tolist() for t in encoded] == [by_hand(folder).encode(prompt + text).ids for text in TEXTS]
    assert {t.ids.dtype for t in encoded} == {np.dtype(np.int32)}
    assert not any(t.truncated for t in encoded)
    assert [t.full_length for t in encoded] == [len(t.ids) for t in encoded]


@settings(max_examples=60)
@given(texts=st.lists(st.text(max_size=30), max_size=4), data=st.data())
def test_any_text_gets_the_ids_of_tokenizer_json(folder: Path, texts: list[str], data: st.DataObject) -> None:
    prompt = data.draw(st.sampled_from(PROMPTS))
    encoded = make(folder).encode(texts, prompt)
    assert [t.ids.tolist() for t in encoded] == [by_hand(folder).encode(prompt + text).ids for text in texts]


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("room", [1, 2, 5, 40])
def test_only_the_tail_of_the_text_is_cut(folder: Path, prompt: str, room: int) -> None:
    reference = by_hand(folder)
    specials = len(reference.encode("").ids)
    head = len(reference.encode(prompt).ids) - 1  # the tail is one special token
    max_length = head + 1 + room
    reference.enable_truncation(max_length)
    text = " ".join(TEXTS)
    [encoded] = make(folder, max_length).encode([text], prompt)
    whole = by_hand(folder).encode(prompt + text).ids
    assert specials == 2
    assert encoded.ids.tolist() == reference.encode(prompt + text).ids
    assert encoded.ids.tolist() == [*whole[: max_length - 1], whole[-1]]
    assert (encoded.truncated, encoded.full_length) == (True, len(whole))


def test_a_text_that_fits_exactly_is_not_truncated(folder: Path) -> None:
    length = len(by_hand(folder).encode("query: " + TEXTS[0]).ids)
    [exact] = make(folder, length).encode(TEXTS[:1], "query: ")
    [cut] = make(folder, length - 1).encode(TEXTS[:1], "query: ")
    assert (exact.truncated, len(exact.ids)) == (False, length)
    assert (cut.truncated, len(cut.ids), cut.full_length) == (True, length - 1, length)


@pytest.mark.parametrize("prompt", PROMPTS[1:])
def test_prompt_length_counts_the_leading_specials_and_the_prompt(folder: Path, prompt: str) -> None:
    expected = len(by_hand(folder).encode(prompt).ids) - 1
    assert {t.prompt_length for t in make(folder).encode(TEXTS, prompt)} == {expected}


def test_a_prompt_that_leaves_no_room_is_refused_and_one_token_of_room_is_enough(folder: Path) -> None:
    prompt = PROMPTS[2]
    tokens = len(by_hand(folder).encode(prompt).ids)
    with pytest.raises(PromptError, match=f"max_length={tokens}"):
        make(folder, tokens).encode(["text"], prompt)
    [encoded] = make(folder, tokens + 1).encode(["text and more text"], prompt)
    assert len(encoded.ids) == tokens + 1


def test_nothing_to_encode(folder: Path) -> None:
    assert make(folder).encode([], "query: ") == []


def test_newlines_and_spaces_of_the_prompt_are_kept(bpe: Path) -> None:
    prompt, text = " Instruct: a\n\nb\nQuery:  ", "  text \n"
    [encoded] = make(bpe).encode([text], prompt)
    assert by_hand(bpe).decode(encoded.ids.tolist(), skip_special_tokens=True) == prompt + text


def test_padding_and_truncation_inside_tokenizer_json_are_ignored(bpe: Path) -> None:
    expected = [by_hand(bpe).encode(text).ids for text in TEXTS]
    tokenizer = by_hand(bpe)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64, pad_id=0, pad_token="<unk>")
    tokenizer.save(str(bpe / "tokenizer.json"))
    assert [t.ids.tolist() for t in make(bpe).encode(TEXTS)] == expected


@pytest.mark.parametrize("flag", [True, False, None])
def test_an_eos_is_appended_where_only_the_config_asks_for_it(tmp_path: Path, flag: bool | None) -> None:
    write_bpe_tokenizer(tmp_path, add_bos=False, add_eos=False)
    write_json(tmp_path / "config.json", {})
    set_json(tmp_path / "tokenizer_config.json", add_eos_token=flag)
    plain = [by_hand(tmp_path).encode("query: " + text).ids for text in TEXTS]
    tail = [2] if flag else []
    encoded = make(tmp_path).encode(TEXTS, "query: ")
    assert [t.ids.tolist() for t in encoded] == [ids + tail for ids in plain]
    [cut] = make(tmp_path, 7).encode([TEXTS[0]], "query: ")
    assert cut.ids.tolist() == [*plain[0][: 7 - len(tail)], *tail]


def test_a_bos_is_prepended_where_only_the_config_asks_for_it(tmp_path: Path) -> None:
    write_bpe_tokenizer(tmp_path, add_bos=False, add_eos=True)
    write_json(tmp_path / "config.json", {})
    set_json(tmp_path / "tokenizer_config.json", add_bos_token=True)
    [encoded] = make(tmp_path).encode(["capital"])
    assert encoded.ids.tolist() == [1, *by_hand(tmp_path).encode("capital").ids]


def test_specials_of_the_template_are_not_doubled_by_the_config(bpe: Path) -> None:
    set_json(bpe / "tokenizer_config.json", add_bos_token=True, add_eos_token=True)
    [encoded] = make(bpe).encode(["capital"])
    assert encoded.ids.tolist() == by_hand(bpe).encode("capital").ids


def test_an_eos_that_the_vocabulary_lacks_is_an_error_that_names_it(tmp_path: Path) -> None:
    write_bpe_tokenizer(tmp_path, add_bos=False, add_eos=False)
    write_json(tmp_path / "config.json", {})
    set_json(tmp_path / "tokenizer_config.json", add_eos_token=True, eos_token="<|gone|>")
    with pytest.raises((CheckpointError, ConfigurationError), match=re.escape("<|gone|>")):
        make(tmp_path).encode(["capital"])


def test_lower_case_applies_to_prompt_and_text(bpe: Path) -> None:
    reference = by_hand(bpe)
    [encoded] = make(bpe, lower_case=True).encode(["What IS Москва"], "Query: ")
    assert encoded.ids.tolist() == reference.encode("query: what is москва").ids
    assert encoded.prompt_length == len(reference.encode("query: ").ids) - 1
    [kept] = make(bpe).encode(["What IS Москва"], "Query: ")
    assert kept.ids.tolist() == reference.encode("Query: What IS Москва").ids


def test_special_ids_are_all_specials_and_the_unknown_token(folder: Path) -> None:
    named = set(json.loads((folder / "special_tokens_map.json").read_text(encoding="utf-8")).values())
    tokenizer = by_hand(folder)
    assert make(folder).special_ids == {tokenizer.token_to_id(token) for token in named}


def test_special_ids_are_found_in_each_place_that_names_them(bpe: Path) -> None:
    tokenizer = by_hand(bpe)
    words = [token for token, i in sorted(tokenizer.get_vocab().items()) if i > 300][:2]
    tokenizer.add_special_tokens([AddedToken("<extra>", special=True)])
    tokenizer.add_tokens(["ordinary"])
    tokenizer.save(str(bpe / "tokenizer.json"))
    write_json(bpe / "special_tokens_map.json", {"cls_token": {"content": words[0], "special": True}})
    set_json(bpe / "tokenizer_config.json", sep_token=words[1])
    special = make(bpe).special_ids
    assert {tokenizer.token_to_id(t) for t in ("<s>", "</s>", "<unk>", "<extra>", *words)} <= special
    assert tokenizer.token_to_id("ordinary") not in special


@pytest.mark.parametrize("kind", ["unigram", "bpe", "wordpiece"])
def test_the_models_unknown_token_is_special_even_if_nothing_else_names_it(tmp_path: Path, kind: str) -> None:
    makers: dict[str, Callable[[], Any]] = {
        "unigram": lambda: models.Unigram([("a", -1.0), ("?", -1.0)], unk_id=1, byte_fallback=False),
        "bpe": lambda: models.BPE({"a": 0, "?": 1}, [], unk_token="?"),
        "wordpiece": lambda: models.WordPiece({"a": 0, "?": 1}, unk_token="?"),
    }
    Tokenizer(makers[kind]()).save(str(tmp_path / "tokenizer.json"))
    write_json(tmp_path / "config.json", {})
    assert by_hand(tmp_path).encode("z").ids == [1]
    assert make(tmp_path).special_ids == {1}


def test_the_vocabulary_reaches_to_the_highest_id(folder: Path) -> None:
    assert make(folder).vocabulary_size == max(by_hand(folder).get_vocab().values()) + 1


def test_id_keys_are_the_ids_without_the_specials(folder: Path) -> None:
    tokenizer = make(folder)
    ids = range(max(by_hand(folder).get_vocab().values()) + 1)
    expected = [-1 if i in tokenizer.special_ids else i for i in ids]
    assert tokenizer.id_keys.tolist() == expected
    assert tokenizer.id_keys.dtype == np.int64


def test_surface_keys_are_the_lowest_id_with_the_same_decoded_string(folder: Path) -> None:
    """Grouped anew: id by id, with the specials out of the way; incomplete characters stay by themselves."""
    tokenizer, reference = make(folder), by_hand(folder)
    ids = range(max(reference.get_vocab().values()) + 1)
    groups: dict[str, list[int]] = {}
    for i in ids:
        text = reference.decode([i], skip_special_tokens=False)
        name = f"part of a character {i}" if "�" in text else text
        if i not in tokenizer.special_ids:
            groups.setdefault(name, []).append(i)
    expected = [-1 for _ in ids]
    for group in groups.values():
        for i in group:
            expected[i] = min(group)
    assert tokenizer.surface_keys.tolist() == expected


def test_a_word_with_and_without_the_word_start_is_one_surface_key(tmp_path: Path) -> None:
    write_xlmr_tokenizer(tmp_path)
    write_json(tmp_path / "config.json", {})
    vocabulary, tokenizer = by_hand(tmp_path).get_vocab(), make(tmp_path)
    marked, bare = vocabulary["▁the"], vocabulary["the"]
    assert marked != bare
    assert tokenizer.surface_keys[marked] == tokenizer.surface_keys[bare] == min(marked, bare)
    assert tokenizer.id_keys[[marked, bare]].tolist() == [marked, bare]
    assert tokenizer.token_texts[marked] == tokenizer.token_texts[bare] == "the"


def test_bytes_of_different_characters_never_share_a_surface_key(bpe: Path) -> None:
    tokenizer, reference = make(bpe), by_hand(bpe)
    parts = [
        i for i in sorted(reference.get_vocab().values()) if "�" in reference.decode([i], skip_special_tokens=False)
    ]
    assert len(parts) > 50
    assert tokenizer.surface_keys[parts].tolist() == parts


def test_a_byte_never_shares_a_key_with_the_character_that_byte_level_bpe_writes_it_as(tmp_path: Path) -> None:
    """The entry of the byte 0xE9 is written "é"; the character é is the bytes C3 A9, written "Ã©"."""
    tokenizer = Tokenizer(models.BPE({"é": 0, "Ã": 1, "©": 2, "Ã©": 3}, [("Ã", "©")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    write_json(tmp_path / "config.json", {})
    assert by_hand(tmp_path).encode("é").ids == [3]
    assert make(tmp_path).surface_keys.tolist() == [0, 1, 2, 3]


def test_holes_in_the_vocabulary_do_not_break_the_tables(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordPiece({"?": 0, "a": 2, "b": 9}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    write_json(tmp_path / "config.json", {})
    made = make(tmp_path)
    assert made.vocabulary_size == 10
    assert made.surface_keys[[0, 2, 9]].tolist() == [-1, 2, 9]


def test_specials_of_a_sequence_of_processors_are_found(tmp_path: Path) -> None:
    write_bpe_tokenizer(tmp_path)
    write_json(tmp_path / "config.json", {})
    tokenizer = by_hand(tmp_path)
    template = processors.TemplateProcessing(single="<s> $A </s> </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    [cut] = make(tmp_path, 8).encode([TEXTS[0]], "query: ")
    whole = tokenizer.encode("query: " + TEXTS[0]).ids
    assert cut.ids.tolist() == [*whole[:6], 2, 2]


@pytest.mark.parametrize("place", ["head", "tail"])
def test_a_post_processor_that_adds_ids_beyond_the_vocabulary_is_refused(bpe: Path, place: str) -> None:
    tokenizer = by_hand(bpe)
    beyond = max(tokenizer.get_vocab().values()) + 1
    template = {"head": "</s> $A", "tail": "$A </s>"}[place]
    for id, refused in ((beyond - 1, False), (beyond, True), (10**9, True)):
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("</s>", id)])
        tokenizer.save(str(bpe / "tokenizer.json"))
        if refused:
            with pytest.raises(CheckpointError, match=r"tokenizer\.json.*ids that its vocabulary does not have"):
                make(bpe)
        else:
            [encoded] = make(bpe).encode(["a"])
            assert id in encoded.ids.tolist()


def test_a_missing_tokenizer_file_says_how_to_make_one(bpe: Path) -> None:
    (bpe / "tokenizer.json").unlink()
    with pytest.raises(CheckpointNotFoundError, match=r"no tokenizer\.json.*AutoTokenizer"):
        make(bpe)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model": {"type": "Nonsense"}}', "\x00\x01"])
def test_a_corrupt_tokenizer_file_is_an_error_that_names_it(bpe: Path, content: str) -> None:
    (bpe / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json.*cannot be read"):
        make(bpe)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_a_corrupt_companion_file_is_an_error_that_names_it(bpe: Path, name: str) -> None:
    (bpe / name).write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match=re.escape(name)):
        make(bpe)
