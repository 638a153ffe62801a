"""Any value in any file of a checkpoint gives a typed error that names it, or loads right: never another vector in
silence, a bare exception, or no end."""

from __future__ import annotations

import copy
import json
import math
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from reference.giga import build_giga_0826, build_giga_10b
from reference.giga_original import build_giga_original
from reference.gte import build_gte
from reference.sentence_layouts import (
    BACKBONES,
    build_bge_m3,
    build_embedding_gemma,
    build_sentence_transformer,
    build_splade,
)
from support import dense_of
from twinvec import Embedder, TruncationWarning
from twinvec.errors import (
    CheckpointError,
    CheckpointFieldError,
    ConfigurationError,
    InvalidTextError,
    UnsupportedCheckpointError,
)

pytestmark = pytest.mark.filterwarnings("ignore::twinvec.TruncationWarning")

LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "gte": build_gte,
    "gte converted": lambda p: build_gte(p, model_type="gte"),
    "giga 480M": lambda p: build_giga_0826(p, size="480M"),
    "giga 10B": build_giga_10b,
    "giga generation 1": lambda p: build_giga_original(p, generation=1),
    "giga generation 2": lambda p: build_giga_original(p, generation=2),
    "bge-m3": lambda p: build_bge_m3(p, weights="safetensors"),
    "splade": build_splade,
    "gemma": build_embedding_gemma,
    "dense": lambda p: build_sentence_transformer(
        p, "bert", dense=[{"out_features": 24}], prompts={"query": "q: "}, max_seq_length=100, truncate_dim=16
    ),
    **{
        name: lambda p, name=name: build_sentence_transformer(p, name)  # type: ignore[misc]
        for name in BACKBONES
        if name not in ("t5", "bert", "roberta")
    },
}
SPECIAL_TOKENS = [f"{name}_token" for name in ("bos", "eos", "cls", "sep", "pad", "unk", "mask")]
TEXTS = ["hello there", "what is the capital of China? it is long enough " * 8]
ABSURD: list[Any] = ["12", "x", -1, -2, 0, 1.5, 3, 7, 513, 10**9, 10**18, math.nan, math.inf, True, [], {}, [1]]
# Values that mean something else and are computed so; everything else must be refused or change nothing.
OTHER_MODELS: dict[str, tuple[Any, ...]] = {
    **{f"pooling_mode_{name}": (True,) for name in ("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens")},
    **dict.fromkeys(("pooling_mode_weightedmean_tokens", "pooling_mode_lasttoken"), (True,)),
    **dict.fromkeys(("rope_theta", "max_seq_length", "truncate_dim"), (3, 7, 513, 10**9)),
    **dict.fromkeys(("factor", "query_pre_attn_scalar", "routed_scaling_factor"), (1.5, 3, 7, 513)),
    **dict.fromkeys(("model_max_length", "max_position_embeddings", "sliding_window", "local_attention"), (3, 7, 513)),
    **dict.fromkeys(("position_buckets", "max_relative_positions", "relative_attention_num_buckets"), (-1, 3, 7, 513)),
    **dict.fromkeys(("num_experts_per_tok", "topk_group", "n_group", "num_cross_heads"), (3, 7)),
    **dict.fromkeys(("rope_scaling", "latent_attention_config", "prompts"), ({},)),
    **dict.fromkeys(("is_causal", "use_bidirectional_attention", "do_lower_case", "add_bos_token"), (True,)),
    **dict.fromkeys(("add_eos_token", "rope_interleave", "norm_topk_prob", "legacy"), (True,)),
    "pos_att_type": ([],),
    "sinusoidal_pos_embds": (True,),
}


def vectors(folder: Path) -> list[Any]:
    with Embedder(folder, dtype="float32", device="cpu", memo_bytes=0) as embedder:
        documents, queries = embedder.embed_documents(TEXTS), embedder.embed_queries(TEXTS)
    sparse = [] if documents.sparse is None else documents.sparse.to_dicts()
    return [batch.dense for batch in (documents, queries) if batch.dense is not None] + sparse


def assert_same(found: list[Any], expected: list[Any]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        if isinstance(a, dict):
            assert a == pytest.approx(b, abs=1e-4)
        else:
            np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, list[Any]]]:
    """Each layout is built once, with its vectors."""
    built: dict[str, tuple[Path, list[Any]]] = {}

    def get(name: str) -> tuple[Path, list[Any]]:
        if name not in built:
            folder = LAYOUTS[name](tmp_path_factory.mktemp("layout"))
            built[name] = folder, vectors(folder)
        return built[name]

    return get


def places(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*before, key)
        yield from places(inner, (*before, key))


@pytest.mark.slow
@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_value_of_any_field_is_refused_by_name_or_harmless(
    layouts: Callable[[str], tuple[Path, list[Any]]], data: st.DataObject
) -> None:
    folder, expected = layouts(data.draw(st.sampled_from(list(LAYOUTS)), "layout"))
    files = [f for f in sorted(folder.rglob("*.json")) if f.name != "tokenizer.json"]
    file = data.draw(st.sampled_from(files), "file")
    original = file.read_text(encoding="utf-8")
    content = json.loads(original)
    place = data.draw(st.sampled_from(list(places(content)) or [()]), "place")
    value = data.draw(st.sampled_from(ABSURD), "value")
    text = isinstance(value, str) and bool({"prompts", "content", *SPECIAL_TOKENS} & set(place))
    if not place or text or value in OTHER_MODELS.get(str(place[-1]), ()):
        return
    changed = copy.deepcopy(content)
    target = changed
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = value
    start = time.monotonic()
    refused: CheckpointFieldError | None = None
    try:
        file.write_text(json.dumps(changed), encoding="utf-8")
        assert_same(vectors(folder), expected)
    except CheckpointFieldError as error:
        refused = error
    except (CheckpointError, ConfigurationError):
        pass
    finally:
        file.write_text(original, encoding="utf-8")
    assert time.monotonic() - start < 30, "no loop and no buffer is as long as a field says"
    if refused is not None:
        assert refused.file.is_relative_to(folder)  # a path in modules.json may lead into a folder inside
        assert str(refused.file) in str(refused)
        assert refused.field in str(refused)


def edited(folder: Path, file: str = "config.json", **changes: Any) -> Path:
    config = json.loads((folder / file).read_text(encoding="utf-8"))
    (folder / file).write_text(json.dumps({**config, **changes}), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("layout", "field", "value"),
    [
        ("gte", "num_attention_heads", 0),
        ("gte", "num_attention_heads", "12"),
        ("gte", "num_attention_heads", 3),
        ("gte", "vocab_size", 0),
        ("gte", "rope_theta", 0),
        ("gte", "rope_theta", math.nan),
        ("gte", "num_hidden_layers", 10**9),
        ("gte", "num_hidden_layers", 1),
        ("gte", "layer_norm_eps", -1e-5),
        ("bge-m3", "intermediate_size", 10**12),
        ("bge-m3", "pad_token_id", 0),
        ("bge-m3", "position_embedding_type", "relative_key"),
        ("bge-m3", "is_decoder", True),
        ("giga 480M", "head_dim", 0),
        ("giga 480M", "use_sliding_window", True),
        ("giga 480M", "is_causal", True),
        ("qwen3", "num_key_value_heads", 3),
        ("qwen3", "rope_parameters", {"rope_type": "dynamic", "rope_theta": 1e6, "factor": 2.0}),
    ],
)
def test_the_error_has_file_field_and_value(tmp_path: Path, layout: str, field: str, value: Any) -> None:
    folder = edited(LAYOUTS[layout](tmp_path), **{field: value})
    with pytest.raises(CheckpointFieldError, match=field) as caught:
        Embedder(folder)
    shown = value["rope_type"] if isinstance(value, dict) else value
    assert caught.value.file.samefile(folder / "config.json")
    assert caught.value.field.startswith(field)
    assert caught.value.value == shown or math.isnan(shown)
    assert repr(shown) in str(caught.value)


# Weights


def with_header(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Change the header of the weights and nothing of the data."""
    file = sorted(folder.glob("model*.safetensors"))[0]
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    change(header)
    written = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(written)) + written + data[8 + length :])
    return folder


@pytest.mark.parametrize("layout", ["gte", "giga 480M", "giga generation 1", "bge-m3", "dense", "splade"])
@pytest.mark.parametrize("dtype", ["I16", "U16", "I8", "BOOL", "F8_E4M3", "C64"])
def test_what_is_no_floating_point_weight_is_refused(tmp_path: Path, layout: str, dtype: str) -> None:
    """All-integer weights without scales load as numbers of another meaning."""
    size = {"I16": 2, "U16": 2, "C64": 8}.get(dtype, 1)

    def retype(header: dict[str, Any]) -> None:
        name = next(n for n in reversed(header) if n != "__metadata__" and len(header[n]["shape"]) == 2)
        start, end = header[name]["data_offsets"]
        header[name] |= {"dtype": dtype, "shape": [(end - start) // size // header[name]["shape"][1], 0]}
        header[name]["shape"] = [(end - start) // size]

    with pytest.raises(CheckpointError, match="floating-point") as caught:
        Embedder(with_header(LAYOUTS[layout](tmp_path), retype))
    assert dtype in str(caught.value)


def test_integers_in_heads_and_dense_modules_are_refused(tmp_path: Path) -> None:
    folder = LAYOUTS["dense"](tmp_path)
    file = next(folder.glob("*_Dense")) / "model.safetensors"
    save_file({name: (100 * t).round().char() for name, t in load_file(file).items()}, file)
    with pytest.raises(CheckpointError, match=r"floating-point.*int8"):
        Embedder(folder)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_header_is_refused_or_harmless(
    layouts: Callable[[str], tuple[Path, list[Any]]], data: st.DataObject
) -> None:
    folder, expected = layouts(data.draw(st.sampled_from(["gte", "giga 480M", "giga generation 1", "bge-m3", "dense"])))
    file = sorted(folder.glob("model*.safetensors"))[0]
    original = file.read_bytes()

    def change(header: dict[str, Any]) -> None:
        name = data.draw(st.sampled_from(sorted(header.keys() - {"__metadata__"})))
        what = data.draw(st.sampled_from(["rename", "drop", "transpose", "flatten", "dtype", "offsets"]))
        entry = header[name]
        if what == "rename":
            header[data.draw(st.sampled_from(["x", name + "x", name.upper(), "pooler.x", ""]))] = header.pop(name)
        elif what == "drop":
            del header[name]
        elif what == "transpose":
            entry["shape"] = entry["shape"][::-1] if len(set(entry["shape"])) > 1 else [1, *entry["shape"]]
        elif what == "flatten":
            entry["shape"] = [math.prod(entry["shape"])] if len(entry["shape"]) > 1 else [1, *entry["shape"]]
        elif what == "dtype":
            entry["dtype"] = data.draw(st.sampled_from(["I16", "U8", "BOOL", "C64", "F9", "", None, 5]))
        else:
            entry["data_offsets"] = data.draw(st.sampled_from([[0, 0], [], None, [-1, 5], ["a", "b"], [2, 10**12]]))

    try:
        with_header(folder, change)
        assert_same(vectors(folder), expected)
    except CheckpointError:
        pass
    finally:
        file.write_bytes(original)


# Tokenizers


def edit_tokenizer(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_a_tokenizer_with_more_ids_than_embeddings_is_refused(tmp_path: Path) -> None:
    folder = LAYOUTS["bge-m3"](tmp_path)
    size = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    token = {"id": size, "content": "<new>", "special": False, "single_word": False, "lstrip": False, "rstrip": False}
    edit_tokenizer(folder, lambda t: t["added_tokens"].append({**token, "normalized": False}))
    with pytest.raises(CheckpointError, match=rf"tokenizer\.json.*{size}"):
        Embedder(folder)


@pytest.mark.parametrize("normalizer", [{"type": "Precompiled", "precompiled_charsmap": "AAAA"}, {"type": "Nothing"}])
def test_a_tokenizer_that_panics_while_it_is_read_is_refused(tmp_path: Path, normalizer: dict[str, Any]) -> None:
    """A panic of the tokenizers library is no Exception."""
    folder = edit_tokenizer(LAYOUTS["bge-m3"](tmp_path), lambda t: t.update(normalizer=normalizer))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Embedder(folder)


def test_a_regular_expression_that_gives_up_rejects_its_caller_only(tmp_path: Path) -> None:
    pattern = {"type": "Replace", "pattern": {"Regex": "(a|aa)+$"}, "content": "x"}
    folder = edit_tokenizer(LAYOUTS["bge-m3"](tmp_path), lambda t: t.update(normalizer=pattern))
    with Embedder(folder, dtype="float32") as embedder:
        with pytest.raises(InvalidTextError, match=r"tokenizer\.json"):
            embedder.embed_documents(["a" * 80 + "!"])
        with pytest.raises(InvalidTextError, match=r"tokenizer\.json"):
            embedder.token_offsets(["a" * 80 + "!"])
        assert np.isfinite(dense_of(embedder.embed_documents(["hello"]))).all()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_tokenizer_file_is_refused_or_tokenises(
    layouts: Callable[[str], tuple[Path, list[Any]]], data: st.DataObject
) -> None:
    folder, _ = layouts(data.draw(st.sampled_from(["gte", "giga 480M", "dense"])))
    file = folder / "tokenizer.json"
    original = file.read_text(encoding="utf-8")

    def change(content: dict[str, Any]) -> None:
        vocabulary = content["model"].pop("vocab")
        place = data.draw(st.sampled_from(list(places(content))))
        content["model"]["vocab"] = vocabulary
        target: Any = content
        for key in place[:-1]:
            target = target[key]
        target[place[-1]] = data.draw(st.sampled_from([None, *ABSURD[:-4], [], {}, "[", "("]))

    try:
        edit_tokenizer(folder, change)
        assert all(np.isfinite(part).all() for part in vectors(folder) if isinstance(part, np.ndarray))
    except (CheckpointError, ConfigurationError, InvalidTextError):
        pass
    finally:
        file.write_text(original, encoding="utf-8")


# What a checkpoint is


@pytest.mark.parametrize("architectures", [["NewForSequenceClassification"], ["NewModel"], [], None])
def test_the_headers_say_that_a_checkpoint_is_a_reranker(tmp_path: Path, architectures: list[str] | None) -> None:
    folder = edited(build_gte(tmp_path, variant="reranker"), architectures=architectures)
    with pytest.raises(UnsupportedCheckpointError, match="reranker"):
        Embedder(folder)


def test_the_headers_say_that_a_checkpoint_is_none(tmp_path: Path) -> None:
    expected = vectors(build_gte(tmp_path))
    assert_same(vectors(edited(tmp_path, architectures=["NewForSequenceClassification"])), expected)


@pytest.mark.parametrize("model_type", ["qwen3_bidirec", "qwen3"])
def test_giga_that_lost_is_causal_is_bidirectional(tmp_path: Path, model_type: str) -> None:
    folder = build_giga_0826(tmp_path, size="480M")
    expected = vectors(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for name in ("is_causal", "auto_map"):
        config.pop(name, None)
    config |= {"model_type": model_type, "architectures": ["Qwen3BidirectionalModel"]}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert_same(vectors(folder), expected)


def test_any_bidirectional_decoder_that_lost_is_causal_is_bidirectional(tmp_path: Path) -> None:
    folder = build_sentence_transformer(tmp_path, "llama")
    causal = vectors(folder)
    expected = vectors(edited(folder, is_causal=False))
    assert not np.allclose(causal[0], expected[0], atol=1e-3)
    assert_same(vectors(edited(folder, is_causal=None, architectures=["LlamaBidirectionalModel"])), expected)
    with pytest.raises(CheckpointFieldError, match="is_causal"):
        Embedder(edited(folder, is_causal=True))


@pytest.mark.parametrize("generation", [1, 2])
def test_another_norm_under_the_same_names_is_refused(tmp_path: Path, generation: Any) -> None:
    folder = build_giga_original(tmp_path, generation=generation)
    expected = vectors(folder)
    text = json.loads((folder / "config.json").read_text(encoding="utf-8"))["text_config"]
    assert_same(vectors(edited(folder, text_config={**text, "norm_type": "RMSNorm"})), expected)
    with pytest.raises(CheckpointError, match=r"norm_type='ZeroCenteredGatedNorm'"):
        Embedder(edited(folder, text_config={**text, "norm_type": "ZeroCenteredGatedNorm"}))


@pytest.mark.parametrize("backbone", ["mpnet", "deberta-v2"])
def test_padded_splade_keeps_texts_apart(tmp_path: Path, backbone: Any) -> None:
    """Their attention cannot be packed: texts of one batch saw each other."""
    folder = build_splade(tmp_path, backbone)
    with Embedder(folder, dtype="float32", memo_bytes=0) as embedder:
        assert embedder.spec.sparse is not None
        together = embedder.embed_documents(TEXTS).sparse
        alone = [embedder.embed_documents([text]).sparse for text in TEXTS]
    assert together is not None
    for row, single in zip(together.to_dicts(), alone, strict=True):
        assert single is not None
        assert row == pytest.approx(single.to_dicts()[0], abs=1e-4)


def test_mpnet_has_positions_for_two_tokens_less_than_its_config_says(tmp_path: Path) -> None:
    folder = edited(build_sentence_transformer(tmp_path, "mpnet"), "sentence_bert_config.json", max_seq_length=None)
    with Embedder(folder, dtype="float32") as embedder:
        assert embedder.max_length <= 512
        with pytest.warns(TruncationWarning):
            assert len(embedder.embed_documents(["word " * 600])) == 1
    with pytest.raises(ConfigurationError, match="512"):
        Embedder(folder, max_length=513)
