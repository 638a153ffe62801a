"""Checkpoints in folders: what their configuration says, and what is wrong with it; digests."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoints.folders import NESTED, header_length, open_folder, shard
from reference.checkpoint_files import write_json
from reference.sentence_layouts import build_bge_m3, build_sentence_transformer
from twinvec.checkpoints.hub import open_checkpoint
from twinvec.checkpoints.tensors import read_json
from twinvec.errors import CheckpointError, CheckpointNotFoundError, ConfigurationError

pytestmark = pytest.mark.usefixtures("no_network")


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
