"""Finding and reading checkpoints: folders, damaged files, pickles, digests, the hub and ModelScope."""

import hashlib
import json
import os
import pickle
import shutil
import struct
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import constants, errors
from huggingface_hub.utils import _http
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from reference.checkpoint_files import read_weights, write_json
from reference.gte import build_gte
from reference.sentence_layouts import build_bge_m3, build_sentence_transformer
from twinvec.checkpoints.files import Checkpoint
from twinvec.checkpoints.hub import open_checkpoint
from twinvec.checkpoints.tensors import Tensor, check_tensors, load_strict, load_tensors, read_json, read_tensor_headers
from twinvec.errors import CheckpointError, CheckpointMismatchError, CheckpointNotFoundError, ConfigurationError
from twinvec.families import find_family

REPO = "owner/name"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER_COMMIT = COMMIT[::-1]
TOKEN = "hf_averysecrettokenofnobody"

Handler = Callable[[httpx.Request], httpx.Response]


def unreachable(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("no route to host", request=request)


def connect(handler: Handler) -> None:
    huggingface_hub.set_client_factory(lambda: httpx.Client(transport=httpx.MockTransport(handler)))


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The hub cannot be reached, no token is stored, and the cache is empty."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "default-cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    connect(unreachable)
    yield
    huggingface_hub.set_client_factory(_http.default_client_factory)


@pytest.fixture(scope="module")
def gte(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_gte(tmp_path_factory.mktemp("gte"))


@pytest.fixture
def folder(gte: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(gte, tmp_path / "checkpoint")


def open_folder(folder: Path, **options: Any) -> Checkpoint:
    return open_checkpoint(str(folder), **options)


def build_model(folder: Path) -> None:
    checkpoint = open_folder(folder)
    family = find_family(checkpoint)
    family.build(checkpoint, family.describe(checkpoint), torch.float32, torch.device("cpu"))


def build_head(folder: Path) -> None:
    checkpoint = open_folder(folder)
    family = find_family(checkpoint)
    family.build_head(checkpoint, family.describe(checkpoint))


# Folders


def test_a_folder_says_what_its_config_says(gte: Path) -> None:
    checkpoint = open_folder(gte)
    assert (checkpoint.name, checkpoint.revision, checkpoint.trusted) == (str(gte), None, False)
    assert checkpoint.config == json.loads((gte / "config.json").read_text(encoding="utf-8"))
    assert checkpoint.model_type == "new"
    assert checkpoint.architectures == ("NewForTokenClassification",)
    assert [m.kind for m in checkpoint.modules] == ["Transformer", "Pooling", "Normalize"]
    assert checkpoint.modules[1].config == read_json(gte / "1_Pooling" / "config.json")
    assert checkpoint.json("tokenizer_config.json") == read_json(gte / "tokenizer_config.json")
    assert checkpoint.json("gone.json") == {}


def test_the_transformer_may_lie_in_a_folder_of_its_own(gte: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / "0_Transformer").mkdir(exist_ok=True)
        shutil.copy(gte / name, tmp_path / "0_Transformer" / name)
    write_json(tmp_path / "modules.json", [{"path": "0_Transformer", "type": "a.b.Transformer"}])
    write_json(tmp_path / "sentence_bert_config.json", {"max_seq_length": 77})
    checkpoint = open_folder(tmp_path)
    assert checkpoint.folder.samefile(tmp_path / "0_Transformer")
    assert checkpoint.tensors == open_folder(gte).tensors
    assert checkpoint.json("sentence_bert_config.json") == {"max_seq_length": 77}


def test_a_folder_in_the_home_directory_is_found(gte: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(gte.parent))
    assert open_checkpoint(f"~/{gte.name}").model_type == "new"


def test_a_folder_has_no_revisions(gte: Path) -> None:
    with pytest.raises(ConfigurationError, match="revision='main'"):
        open_folder(gte, revision="main")


def test_a_folder_may_be_trusted_without_a_revision(gte: Path) -> None:
    assert open_folder(gte, trust_remote_code=True).trusted


def test_a_file_instead_of_its_folder_is_explained(gte: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="is a file"):
        open_checkpoint(str(gte / "config.json"))


@pytest.mark.parametrize("name", ["./gone", "/gone/for/good", "a/b/c", "owner/", "/", "ow ner/name", "", "модель"])
def test_what_is_neither_a_folder_nor_a_hub_id_is_not_asked_for(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointNotFoundError):
        open_checkpoint(name)


def test_a_folder_without_a_config_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match=r"no config\.json"):
        open_folder(tmp_path)


def test_missing_config_fields_are_all_named(gte: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: first, second missing"):
        open_folder(gte).check("hidden_size", "first", "second")
    open_folder(gte).check("hidden_size")


NESTED = "[" * 100_000


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[1]", b'"text"', b"\xff\xfe{}", b"\x00" * 9, NESTED.encode()],
    ids=lambda content: repr(content[:9]),
)
@pytest.mark.parametrize("name", ["config.json", "1_Pooling/config.json"])
def test_corrupt_json_is_an_error_that_names_the_file(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        open_folder(folder)


@pytest.mark.parametrize(
    "content", ["", "{}", '{"path": "x"}', "[]", "[1]", "[{}]", '[{"path": ""}]', '[{"type": "a.Transformer"}]', "[["]
)
def test_a_corrupt_module_list_is_an_error_that_names_it(folder: Path, content: str) -> None:
    (folder / "modules.json").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"modules\.json"):
        open_folder(folder)


@pytest.mark.parametrize("path", ["..", "../other", "1_Pooling/../../other", "{outside}", "1_Link"])
def test_a_module_outside_of_the_checkpoint_is_refused(folder: Path, tmp_path: Path, path: str) -> None:
    outside = tmp_path / "other"
    outside.mkdir()
    write_json(outside / "config.json", {})
    (folder / "1_Link").symlink_to(outside)
    modules = [{"path": "", "type": "a.Transformer"}, {"path": path.format(outside=outside), "type": "a.Dense"}]
    write_json(folder / "modules.json", modules)
    with pytest.raises(CheckpointError, match="Dense points outside"):
        open_folder(folder)


# Weights


def test_headers_list_every_tensor_of_every_shard(tmp_path: Path) -> None:
    build_sentence_transformer(tmp_path, "bert", dtype="float16")
    expected = {name: tensor.shape for name, tensor in read_weights(tmp_path).items()}
    tensors = open_folder(tmp_path).tensors
    assert {name: tensor.shape for name, tensor in tensors.items()} == expected
    assert {tensor.dtype for tensor in tensors.values()} == {"F16"}


def shard(folder: Path) -> list[str]:
    """Split model.safetensors into two files and an index, as transformers does."""
    tensors = load_tensors(folder / "model.safetensors")
    names = sorted(tensors)
    files = {name: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in sorted(set(files.values())):
        save_file({name: tensors[name] for name in names if files[name] == file}, folder / file)
    (folder / "model.safetensors").unlink()
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": files})
    return sorted(set(files.values()))


def test_shards_are_one_model(folder: Path, gte: Path) -> None:
    files = shard(folder)
    checkpoint = open_folder(folder)
    assert [file.name for file in checkpoint.weight_files] == files
    assert checkpoint.tensors == open_folder(gte).tensors


def test_a_missing_shard_is_named(folder: Path) -> None:
    gone = shard(folder)[1]
    (folder / gone).unlink()
    with pytest.raises(CheckpointNotFoundError, match=gone):
        _ = open_folder(folder).tensors


@pytest.mark.parametrize(
    "content",
    ["{", "{}", '{"weight_map": {}}', '{"weight_map": []}', '{"weight_map": {"a": 5}}', '{"weight_map": null}'],
)
def test_a_corrupt_index_is_an_error_that_names_it(folder: Path, content: str) -> None:
    shard(folder)
    (folder / "model.safetensors.index.json").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json"):
        _ = open_folder(folder).weight_files


def test_an_index_may_not_name_files_outside_of_the_checkpoint(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "model.safetensors", tmp_path / "outside.safetensors")
    (folder / "model.safetensors").unlink()
    write_json(folder / "model.safetensors.index.json", {"weight_map": {"a": "../outside.safetensors"}})
    with pytest.raises(CheckpointError, match="outside"):
        _ = open_folder(folder).weight_files


def test_a_single_file_wins_over_a_leftover_index_as_in_transformers(folder: Path) -> None:
    write_json(folder / "model.safetensors.index.json", {"weight_map": {"a": "model-00001-of-00002.safetensors"}})
    assert [file.name for file in open_folder(folder).weight_files] == ["model.safetensors"]


def test_safetensors_win_over_pickles(folder: Path) -> None:
    torch.save({"a": torch.zeros(1)}, folder / "pytorch_model.bin")
    assert [file.name for file in open_folder(folder).weight_files] == ["model.safetensors"]


def test_no_weights_at_all_is_an_error_with_the_folder(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointNotFoundError, match=r"checkpoint: no weights"):
        _ = open_folder(folder).tensors


def header_length(file: Path) -> int:
    return 8 + int(struct.unpack("<Q", file.read_bytes()[:8])[0])


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 9, 0.01, 0.5, 0.99, "header", "header + 1", "all but 1"])
def test_a_truncated_file_is_an_error_that_names_it(folder: Path, kept: int | float | str) -> None:
    file = folder / "model.safetensors"
    size, header = file.stat().st_size, header_length(file)
    places = {"header": header, "header + 1": header + 1, "all but 1": size - 1}
    length = places[kept] if isinstance(kept, str) else int(kept * size) if isinstance(kept, float) else kept
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=r"model\.safetensors.*[Dd]ownload it again"):
        _ = open_folder(folder).tensors


def test_bytes_after_the_end_are_noticed(folder: Path) -> None:
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(CheckpointError, match="its header describes"):
        _ = open_folder(folder).tensors


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 2**40, 100 * 2**20 + 1, "size"])
def test_a_huge_header_length_is_refused_without_reading_it(folder: Path, length: int | str) -> None:
    file = folder / "model.safetensors"
    claimed = file.stat().st_size if isinstance(length, str) else length
    file.write_bytes(struct.pack("<Q", claimed) + file.read_bytes()[8:])
    with pytest.raises(CheckpointError, match=f"its header claims {claimed:,} bytes"):
        _ = open_folder(folder).tensors


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"5",
        b"null",
        b'"x"',
        b"{",
        b"\xff",
        b'{"a": 5}',
        b'{"a": {}}',
        b'{"a": {"dtype": "F32", "shape": [1]}}',
        b'{"a": {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": 4}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, "4"]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}',
        NESTED.encode(),
    ],
    ids=lambda header: repr(header[:60]),
)
def test_a_header_of_another_form_is_refused(tmp_path: Path, header: bytes) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        read_tensor_headers(file)


@settings(max_examples=200)
@given(data=st.data())
def test_no_damage_to_a_file_escapes_as_a_foreign_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    file = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    save_file({"a": torch.ones(2, 3), "b": torch.ones(4, dtype=torch.float16)}, file)
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))])
    for read in (read_tensor_headers, load_tensors):
        try:
            read(file)
        except CheckpointError as error:
            assert "damaged.safetensors" in str(error)  # noqa: PT017  either outcome is allowed


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param(b'"F16"', b'"F64"', id="dtype"),
        pytest.param(b'"F16"', b'"Q16"', id="unknown dtype"),
        pytest.param(b'"shape": [64]', b'"shape": [65]', id="shape"),
        pytest.param(b'"shape": [64]', b'"shape": [-4]', id="negative shape"),
        pytest.param(b"new.encoder", b"nev.encoder", id="name"),
    ],
)
def test_a_header_that_contradicts_its_data_stops_the_model(folder: Path, old: bytes, new: bytes) -> None:
    file = folder / "model.safetensors"
    content = file.read_bytes()
    assert len(old) == len(new)
    assert old in content
    file.write_bytes(content.replace(old, new, 1))
    with pytest.raises(CheckpointError):
        build_model(folder)


def test_loading_takes_the_names_with_the_prefix_and_their_exact_values(gte: Path) -> None:
    loaded = load_tensors(gte / "model.safetensors", "classifier.")
    stored = read_weights(gte)
    assert set(loaded) == {"classifier.weight", "classifier.bias"}
    for name, tensor in loaded.items():
        np.testing.assert_array_equal(tensor.double().numpy(), stored[name])
    with pytest.raises(CheckpointNotFoundError, match="no such file"):
        load_tensors(gte / "gone.safetensors")


# Pickles


class Execute:
    """Unpickling this creates a file."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.witness),)


def write_malicious(file: Path, form: str, witness: Path) -> None:
    harmful = {"weight": torch.zeros(1), "x": Execute(witness)}
    if form == "zip":
        torch.save(harmful, file)
    elif form == "legacy":
        torch.save(harmful, file, _use_new_zipfile_serialization=False)
    else:
        file.write_bytes(pickle.dumps(harmful))


@pytest.mark.parametrize("form", ["zip", "legacy", "plain"])
def test_code_inside_a_pickle_is_refused_and_never_runs(tmp_path: Path, form: str) -> None:
    file, witness = tmp_path / "pytorch_model.bin", tmp_path / "witness"
    write_malicious(file, form, witness)
    for read in (load_tensors, read_tensor_headers):
        with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: refused"):
            read(file)
    assert not witness.exists()
    pickle.loads(pickle.dumps(Execute(witness)))
    assert witness.exists()


@pytest.mark.parametrize("form", ["zip", "legacy", "plain"])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "sparse_linear.pt"])
def test_code_inside_any_file_of_a_checkpoint_never_runs(tmp_path: Path, form: str, name: str) -> None:
    folder, witness = build_bge_m3(tmp_path / "bge"), tmp_path / "witness"
    write_malicious(folder / name, form, witness)
    with pytest.raises(CheckpointError, match=f"{name}: refused"):
        build_head(folder) if name == "sparse_linear.pt" else build_model(folder)
    assert not witness.exists()


@pytest.mark.parametrize(
    "content",
    [[torch.zeros(1)], {"a": 5}, {"state_dict": {"a": torch.zeros(1)}}, torch.zeros(1), {5: torch.zeros(1)}],
    ids=["list", "number", "nested", "tensor", "key"],
)
def test_a_pickle_of_anything_but_named_tensors_is_refused(tmp_path: Path, content: Any) -> None:
    file = tmp_path / "pytorch_model.bin"
    torch.save(content, file)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: refused"):
        load_tensors(file)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_of_tensors_is_read(tmp_path: Path, legacy: bool) -> None:
    file, tensors = tmp_path / "pytorch_model.bin", {"a": torch.ones(2, 3), "b": torch.ones(4, dtype=torch.float16)}
    torch.save(tensors, file, _use_new_zipfile_serialization=not legacy)
    assert read_tensor_headers(file) == {"a": Tensor("float32", (2, 3)), "b": Tensor("float16", (4,))}
    assert set(load_tensors(file, "b")) == {"b"}


@pytest.mark.parametrize("length", [0, 10, 0.5, 0.99])
def test_a_truncated_pickle_is_an_error_that_names_it(tmp_path: Path, length: float) -> None:
    file = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.ones(1000)}, file)
    content = file.read_bytes()
    file.write_bytes(content[: int(length if length >= 1 else length * len(content))])
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        load_tensors(file)


# Strict comparison


def test_every_difference_of_two_listings_is_reported_at_once() -> None:
    found = {"same": (1,), "extra": (2,), "shape": (3, 4)}
    wanted = {"same": (1,), "lost": (5,), "shape": (4, 3)}
    with pytest.raises(CheckpointMismatchError) as caught:
        check_tensors(found, wanted, "where")
    error = caught.value
    assert (error.missing, error.unexpected) == (("lost",), ("extra",))
    assert error.mismatched == {"shape": ((3, 4), (4, 3))}
    for part in ("where", "lost", "extra", "shape [3, 4] instead of [4, 3]"):
        assert part in str(error)
    check_tensors({"a": (1,)}, {"a": (1,)}, "where")


def test_strict_loading_fills_a_module_on_the_meta_device_in_the_dtype_asked_for() -> None:
    with torch.device("meta"):
        linear = torch.nn.Linear(2, 1)
    tensors = {"weight": torch.tensor([[1.0, 2.0]]), "bias": torch.tensor([3.0])}
    load_strict(linear, tensors, "here", torch.bfloat16)
    assert linear.weight.dtype == torch.bfloat16
    assert linear(torch.ones(1, 2, dtype=torch.bfloat16)).tolist() == [[6.0]]
    with pytest.raises(CheckpointMismatchError) as caught:
        load_strict(torch.nn.Linear(3, 1), tensors, "here")
    assert caught.value.mismatched == {"weight": ((1, 2), (1, 3))}


# Digest


def test_the_digest_survives_a_move_and_a_copy(gte: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(gte, tmp_path / "zz" / "copy")
    moved = shutil.move(shutil.copytree(gte, tmp_path / "temporary"), tmp_path / "aa")
    digests = {open_folder(path).digest for path in (gte, copy, Path(moved))}
    assert len(digests) == 1
    assert len(digests.pop()) == 64


def test_the_digest_does_not_depend_on_how_the_path_is_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = open_folder(folder).digest
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    assert open_checkpoint(folder.name).digest == expected
    assert open_checkpoint(f"./{folder.name}/").digest == expected
    assert open_folder(tmp_path / "link").digest == expected


@pytest.mark.parametrize(
    "name",
    ["config.json", "tokenizer.json", "1_Pooling/config.json", "config_sentence_transformers.json", "modules.json"],
)
def test_any_byte_of_a_configuration_changes_the_digest(folder: Path, name: str) -> None:
    before = open_folder(folder).digest
    with (folder / name).open("ab") as file:
        file.write(b"\n")
    assert open_folder(folder).digest != before


@settings(max_examples=30)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_bit_of_the_weights_changes_the_digest(gte: Path, place: float, bit: int) -> None:
    file = gte / "model.safetensors"
    content = file.read_bytes()
    before = open_folder(gte).digest
    changed = bytearray(content)
    header = header_length(file)
    changed[header + int(place * (len(content) - header))] ^= 1 << bit
    try:
        file.write_bytes(changed)
        assert open_folder(gte).digest != before
    finally:
        file.write_bytes(content)


def test_the_last_byte_of_every_shard_counts_in_the_digest(folder: Path) -> None:
    single = open_folder(folder).digest
    files = shard(folder)
    sharded = open_folder(folder).digest
    assert sharded != single
    for name in files:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert open_folder(folder).digest != sharded
        (folder / name).write_bytes(content)
    assert open_folder(folder).digest == sharded


@pytest.mark.parametrize("name", ["sparse_linear.pt", "2_Dense/model.safetensors"])
def test_heads_and_dense_modules_count_in_the_digest(tmp_path: Path, name: str) -> None:
    if name.endswith(".pt"):
        build_bge_m3(tmp_path)
    else:
        build_sentence_transformer(tmp_path, "bert", dense=[{"out_features": 8}])
    before = open_folder(tmp_path).digest
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert open_folder(tmp_path).digest != before


# The hub's cache, without the hub


def fill_cache(cache: Path, source: Path, *, repo: str = REPO, refs: tuple[str, ...] = ("main",)) -> Path:
    """The layout that huggingface_hub writes: files are links from the snapshot to blobs. Returns the snapshot."""
    base = cache / f"models--{repo.replace('/', '--')}"
    snapshot = base / "snapshots" / COMMIT
    for file in [path for path in source.rglob("*") if path.is_file()]:
        content = file.read_bytes()
        blob = base / "blobs" / hashlib.sha256(content).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        link = snapshot / file.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    for ref in refs:
        (base / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
        (base / "refs" / ref).write_text(COMMIT, encoding="utf-8")
    return snapshot


@pytest.fixture
def cache(gte: Path, tmp_path: Path) -> Path:
    fill_cache(tmp_path / "cache", gte, refs=("main", "v1", "refs/pr/3"))
    return tmp_path / "cache"


def assert_is_gte(checkpoint: Checkpoint, gte: Path) -> None:
    assert checkpoint.revision == COMMIT
    assert checkpoint.config == open_folder(gte).config
    assert checkpoint.tensors == open_folder(gte).tensors
    assert checkpoint.digest == open_folder(gte).digest, "a hub id and its local copy have one digest"


@pytest.mark.parametrize("revision", [None, "main", "v1", "refs/pr/3", COMMIT])
def test_a_cached_repository_opens_offline_at_any_revision(cache: Path, gte: Path, revision: str | None) -> None:
    checkpoint = open_checkpoint(REPO, revision=revision, cache_dir=str(cache), offline=True)
    assert checkpoint.name == REPO
    assert_is_gte(checkpoint, gte)


@pytest.mark.parametrize("revision", [None, "v1", COMMIT])
def test_a_cached_repository_opens_when_the_hub_cannot_be_reached(cache: Path, gte: Path, revision: str | None) -> None:
    assert_is_gte(open_checkpoint(REPO, revision=revision, cache_dir=str(cache)), gte)


@pytest.mark.parametrize("revision", [None, "v1", COMMIT])
def test_a_cached_repository_opens_in_the_hub_librarys_own_offline_mode(
    cache: Path, gte: Path, revision: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HF_HUB_OFFLINE=1 without TWINVEC_OFFLINE."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.set_client_factory(_http.default_client_factory)
    assert_is_gte(open_checkpoint(REPO, revision=revision, cache_dir=str(cache)), gte)


def test_the_default_cache_is_the_hub_librarys(gte: Path) -> None:
    fill_cache(Path(constants.HF_HUB_CACHE), gte)
    assert_is_gte(open_checkpoint(REPO, offline=True), gte)


def test_a_cached_repository_of_pickles_opens_offline(tmp_path: Path) -> None:
    source = build_bge_m3(tmp_path / "bge")
    fill_cache(tmp_path / "cache", source)
    checkpoint = open_checkpoint(REPO, cache_dir=str(tmp_path / "cache"), offline=True)
    assert checkpoint.tensors == open_folder(source).tensors


def test_a_bare_name_belongs_to_sentence_transformers(gte: Path, tmp_path: Path) -> None:
    fill_cache(tmp_path, gte, repo="sentence-transformers/all-Tiny_v1.5")
    assert_is_gte(open_checkpoint("all-Tiny_v1.5", cache_dir=str(tmp_path), offline=True), gte)


def test_a_full_local_copy_with_files_that_are_not_needed_has_the_same_digest(folder: Path, gte: Path) -> None:
    """A git clone holds more than a download by TwinVec: pickles beside safetensors, ONNX files, a readme."""
    torch.save({"a": torch.zeros(1)}, folder / "pytorch_model.bin")
    torch.save({"a": torch.zeros(1)}, folder / "training_args.pt")
    (folder / "README.md").write_text("# card", encoding="utf-8")
    write_json(folder / "onnx" / "config.json", {})
    assert open_folder(folder).digest == open_folder(gte).digest


@pytest.mark.parametrize("offline", [True, False])
@pytest.mark.parametrize(("repo", "revision"), [("owner/other", None), (REPO, "gone"), (REPO, OTHER_COMMIT)])
def test_what_is_not_cached_is_an_error_that_says_what_to_do(
    cache: Path, offline: bool, repo: str, revision: str | None
) -> None:
    with pytest.raises(CheckpointNotFoundError) as caught:
        open_checkpoint(repo, revision=revision, cache_dir=str(cache), offline=offline, token=TOKEN)
    message = str(caught.value)
    assert repo in message
    assert str(cache) in message
    assert ("offline" if offline else "cannot be reached") in message
    assert "pass that folder" in message
    assert TOKEN not in message


def test_an_interrupted_download_is_an_error_with_its_folder(cache: Path) -> None:
    snapshot = cache / "models--owner--name" / "snapshots" / COMMIT
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(CheckpointNotFoundError, match="no weights"):
        _ = open_checkpoint(REPO, cache_dir=str(cache), offline=True).tensors
    (snapshot / "config.json").unlink()
    with pytest.raises(CheckpointNotFoundError, match=r"no config\.json"):
        open_checkpoint(REPO, cache_dir=str(cache), offline=True)


@pytest.mark.parametrize(
    "name", ["owner/na..me", "owner/na--me", "owner/name.git", "owner/name-", "o" * 60 + "/" + "n" * 60]
)
def test_an_id_that_the_hub_library_refuses_is_not_found_either(name: str) -> None:
    with pytest.raises(CheckpointNotFoundError):
        open_checkpoint(name)


# The hub, answered by a transport that never leaves the process


class FakeHub:
    """The three routes that snapshot_download uses, for one repository."""

    def __init__(self, source: Path) -> None:
        self.files = {p.relative_to(source).as_posix(): p.read_bytes() for p in source.rglob("*") if p.is_file()}
        self.tokens: set[str | None] = set()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.tokens.add(request.headers.get("authorization"))
        path = request.url.path
        if path.startswith(f"/api/models/{REPO}/revision/"):
            return httpx.Response(200, json={"id": REPO, "sha": COMMIT, "siblings": []}, request=request)
        if path == f"/api/models/{REPO}/tree/{COMMIT}":
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}  # noqa: S324
                for name, content in self.files.items()
            ]
            return httpx.Response(200, json=entries, request=request)
        prefix = f"/{REPO}/resolve/{COMMIT}/"
        if path.startswith(prefix):
            content = self.files[path.removeprefix(prefix)]
            headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}  # noqa: S324
            headers["Content-Length"] = str(len(content))
            body = b"" if request.method == "HEAD" else content
            return httpx.Response(200, headers=headers, content=body, request=request)
        return httpx.Response(404, headers={"X-Error-Code": "RepoNotFound"}, request=request)


def test_a_download_brings_what_is_needed_and_nothing_else(folder: Path, gte: Path, tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, folder / "pytorch_model.bin")
    for name in ("README.md", "modeling.py", "onnx/model.onnx", "onnx/config.json", "image.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x", encoding="utf-8")
    hub = FakeHub(folder)
    connect(hub)
    checkpoint = open_checkpoint(REPO, cache_dir=str(tmp_path / "cache"), token=TOKEN)
    assert_is_gte(checkpoint, gte)
    fetched = {p.relative_to(checkpoint.root).as_posix() for p in checkpoint.root.rglob("*") if p.is_file()}
    assert fetched == {p.relative_to(gte).as_posix() for p in gte.rglob("*") if p.is_file()}
    assert hub.tokens == {f"Bearer {TOKEN}"}
    connect(unreachable)
    assert_is_gte(open_checkpoint(REPO, cache_dir=str(tmp_path / "cache")), gte)


def test_pickles_are_downloaded_where_there_is_nothing_else(tmp_path: Path) -> None:
    source = build_bge_m3(tmp_path / "bge")
    connect(FakeHub(source))
    checkpoint = open_checkpoint(REPO, cache_dir=str(tmp_path / "cache"))
    assert checkpoint.tensors == open_folder(source).tensors
    assert (checkpoint.root / "sparse_linear.pt").is_file()


def test_a_dense_module_in_a_pickle_is_downloaded_beside_safetensors(tmp_path: Path) -> None:
    """Many older repositories got a model.safetensors later, their Dense modules did not."""
    source = build_sentence_transformer(tmp_path / "source", "bert", dense=[{"out_features": 8}])
    dense = source / "2_Dense"
    torch.save(load_tensors(dense / "model.safetensors"), dense / "pytorch_model.bin")
    (dense / "model.safetensors").unlink()
    connect(FakeHub(source))
    checkpoint = open_checkpoint(REPO, cache_dir=str(tmp_path / "cache"))
    assert (checkpoint.root / "2_Dense" / "pytorch_model.bin").is_file()


def test_code_is_downloaded_only_where_it_was_opted_in(folder: Path, tmp_path: Path) -> None:
    (folder / "modeling.py").write_text("raise SystemExit", encoding="utf-8")
    connect(FakeHub(folder))
    plain = open_checkpoint(REPO, revision=COMMIT, cache_dir=str(tmp_path / "a"))
    trusted = open_checkpoint(REPO, revision=COMMIT, cache_dir=str(tmp_path / "b"), trust_remote_code=True)
    assert (plain.trusted, (plain.root / "modeling.py").exists()) == (False, False)
    assert (trusted.trusted, (trusted.root / "modeling.py").exists()) == (True, True)


@pytest.mark.parametrize("revision", [None, "main", COMMIT[:39], COMMIT.upper(), COMMIT + "0", "g" * 40])
@pytest.mark.parametrize("model", [REPO, "modelscope:owner/name", "bare-name"])
def test_code_from_a_hub_needs_the_full_commit(model: str, revision: str | None) -> None:
    with pytest.raises(ConfigurationError, match="full commit"):
        open_checkpoint(model, revision=revision, trust_remote_code=True)


def answer(status: int, code: str | None) -> Handler:
    headers = {"X-Error-Code": code} if code else {}
    return lambda request: httpx.Response(status, headers=headers, request=request)


@pytest.mark.parametrize(
    ("handler", "advice"),
    [
        pytest.param(answer(403, "GatedRepo"), "must be granted", id="gated"),
        pytest.param(answer(401, "GatedRepo"), "must be granted", id="gated, no token"),
        pytest.param(answer(404, "RepoNotFound"), "no such repository", id="no repository"),
        pytest.param(answer(401, "RepoNotFound"), "no such repository", id="private"),
        pytest.param(answer(404, "RevisionNotFound"), "no such repository or revision", id="no revision"),
        pytest.param(answer(500, None), "cannot be reached", id="server error"),
        pytest.param(answer(429, None), "cannot be reached", id="too many requests"),
        pytest.param(unreachable, "cannot be reached", id="no connection"),
    ],
)
@pytest.mark.parametrize("revision", ["main", COMMIT])
def test_each_refusal_of_the_hub_says_what_to_do(tmp_path: Path, handler: Handler, advice: str, revision: str) -> None:
    connect(handler)
    with pytest.raises(CheckpointNotFoundError) as caught:
        open_checkpoint(REPO, revision=revision, cache_dir=str(tmp_path), token=TOKEN)
    assert REPO in str(caught.value)
    assert advice in str(caught.value)
    assert TOKEN not in repr(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        errors.LocalEntryNotFoundError("nothing cached"),
        errors.OfflineModeIsEnabled("offline"),
        OSError("disk full"),
        PermissionError("cache is read-only"),
        httpx.ReadTimeout("slow"),
        httpx.ProxyError("proxy"),
        httpx.RemoteProtocolError("peer closed connection"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_each_failure_of_a_download_becomes_one_error(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*args: object, **kwargs: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(CheckpointNotFoundError, match=REPO) as caught:
        open_checkpoint(REPO, token=TOKEN)
    assert caught.value.__cause__ is error
    assert TOKEN not in str(caught.value)


def test_the_token_is_no_part_of_a_checkpoint(cache: Path) -> None:
    checkpoint = open_checkpoint(REPO, cache_dir=str(cache), offline=True, token=TOKEN)
    assert TOKEN not in repr(checkpoint)
    assert TOKEN not in pickle.dumps(checkpoint).decode("latin-1")


# ModelScope


def install_modelscope(monkeypatch: pytest.MonkeyPatch, download: Callable[..., str]) -> None:
    module: Any = types.ModuleType("modelscope")
    module.snapshot_download = download
    monkeypatch.setitem(sys.modules, "modelscope", module)


def test_modelscope_resolves_through_its_own_package(gte: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[tuple[object, ...], dict[str, Any]]] = []

    def download(*args: object, **options: Any) -> str:
        calls.append((args, options))
        return str(gte)

    install_modelscope(monkeypatch, download)
    name = "modelscope:iic/gte_sentence-embedding_multilingual-base"
    checkpoint = open_checkpoint(name, revision="v1.0", cache_dir="/c", offline=True)
    assert (checkpoint.name, checkpoint.revision) == (name, "v1.0")
    assert checkpoint.tensors == open_folder(gte).tensors
    [(args, options)] = calls
    assert args == ("iic/gte_sentence-embedding_multilingual-base",)
    assert (options["revision"], options["cache_dir"], options["local_files_only"]) == ("v1.0", "/c", True)
    assert "*.safetensors" in options["allow_patterns"]
    assert "*.py" not in options["allow_patterns"]


def test_modelscope_gets_code_only_with_trust(gte: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patterns: list[str] = []

    def download(model: str, *, allow_patterns: list[str], **options: object) -> str:
        patterns.extend(allow_patterns)
        return str(gte)

    install_modelscope(monkeypatch, download)
    assert open_checkpoint("modelscope:iic/x", revision=COMMIT, trust_remote_code=True).trusted
    assert "*.py" in patterns


def test_a_failure_of_modelscope_is_one_error_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*args: object, **options: object) -> str:
        raise RuntimeError("the service is away")

    install_modelscope(monkeypatch, download)
    with pytest.raises(CheckpointNotFoundError, match=r"modelscope:iic/x.*the service is away"):
        open_checkpoint("modelscope:iic/x", token=TOKEN)


def test_without_the_modelscope_package_the_pip_command_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'twinvec\[modelscope\]'"):
        open_checkpoint("modelscope:iic/x")
