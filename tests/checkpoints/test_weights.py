"""Weights: shards, damage, pickles that carry code, strict comparison."""

import os
import pickle
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from checkpoints.folders import NESTED, header_length, open_folder, shard
from reference.checkpoint_files import read_weights, write_json
from reference.sentence_layouts import build_bge_m3, build_sentence_transformer
from twinvec.checkpoints.tensors import Tensor, check_tensors, load_strict, load_tensors, read_tensor_headers
from twinvec.errors import CheckpointError, CheckpointMismatchError, CheckpointNotFoundError
from twinvec.families import find_family

pytestmark = pytest.mark.usefixtures("no_network")


def build_model(folder: Path) -> None:
    checkpoint = open_folder(folder)
    family = find_family(checkpoint)
    family.build(checkpoint, family.describe(checkpoint), torch.float32, torch.device("cpu"))


def build_head(folder: Path) -> None:
    checkpoint = open_folder(folder)
    family = find_family(checkpoint)
    family.build_head(checkpoint, family.describe(checkpoint))


# Weights


def test_headers_list_every_tensor_of_every_shard(tmp_path: Path) -> None:
    build_sentence_transformer(tmp_path, "bert", dtype="float16")
    expected = {name: tensor.shape for name, tensor in read_weights(tmp_path).items()}
    tensors = open_folder(tmp_path).tensors
    assert {name: tensor.shape for name, tensor in tensors.items()} == expected
    assert {tensor.dtype for tensor in tensors.values()} == {"F16"}


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
