"""Identity: every byte counts, a large file is read once, and nothing that is remembered can be wrong."""

import hashlib
import os
import shutil
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from checkpoints.digests import digest_of, digests_of_copies
from reference.gte import build_gte
from reference.sentence_layouts import build_sentence_transformer
from support import TEXTS, dense_of, sparse_of
from twinvec import Embedder, ModelSpec
from twinvec.cache import VectorCache
from twinvec.checkpoints import identity
from twinvec.checkpoints.identity import identify
from twinvec.errors import CheckpointError, DeviceLostError

SIZE = 3 * 2**20 + 17  # more than what is remembered, and no multiple of any block
same_folder = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def content() -> bytes:
    return np.random.default_rng(5).bytes(SIZE)


@pytest.fixture
def file(content: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    return path


def expected(content: bytes) -> str:
    """By hand: sha256 over a line per file, its name and its own sha256."""
    return hashlib.sha256(f"weights\0{hashlib.sha256(content).hexdigest()}\n".encode()).hexdigest()


def bytes_read(action: Callable[[], object]) -> int:
    """What the process has read meanwhile, from files or from the system's cache of them."""

    def count() -> int:
        lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
        return int(next(line for line in lines if line.startswith("rchar")).split()[1])

    before = count()
    action()
    return count() - before


@same_folder
@given(place=st.integers(0, SIZE - 1), bit=st.integers(0, 7))
def test_any_bit_of_a_large_file_counts(file: Path, content: bytes, tmp_path: Path, place: int, bit: int) -> None:
    changed = bytearray(content)
    changed[place] ^= 1 << bit
    file.write_bytes(changed)
    assert digest_of(file, tmp_path / "memory") == expected(bytes(changed)) != expected(content)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts what the process reads in /proc")
def test_a_large_file_is_read_once(file: Path, content: bytes, tmp_path: Path) -> None:
    memory = tmp_path / "memory"
    assert bytes_read(lambda: digest_of(file, memory)) >= SIZE
    assert bytes_read(lambda: digest_of(file, memory)) < 10_000
    (tmp_path / "link").symlink_to(file)
    assert bytes_read(lambda: digest_of(tmp_path / "link", memory)) < 10_000
    assert digest_of(file, memory) == expected(content)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts what the process reads in /proc")
def test_opening_a_checkpoint_again_reads_no_weights(tmp_path: Path) -> None:
    folder = build_gte(tmp_path / "gte")
    weights = load_file(folder / "model.safetensors")
    weights["new.embeddings.word_embeddings.weight"] = torch.zeros(9000, 64)  # 2 MB
    save_file(weights, folder / "model.safetensors")
    from twinvec.checkpoints.hub import open_checkpoint

    def open_it() -> object:
        return open_checkpoint(str(folder), cache_dir=str(tmp_path / "cache")).digest

    assert bytes_read(open_it) > 2_000_000
    assert bytes_read(open_it) < 500_000
    assert list((tmp_path / "cache").rglob("*"))


def test_a_rewritten_file_of_the_same_size_and_time_is_another(file: Path, content: bytes, tmp_path: Path) -> None:
    stat = file.stat()
    assert digest_of(file, tmp_path / "memory") == expected(content)
    file.write_bytes(content[::-1])
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert digest_of(file, tmp_path / "memory") == expected(content[::-1])


def test_a_file_that_is_rewritten_at_once_is_never_remembered_as_the_one_before(tmp_path: Path, content: bytes) -> None:
    """Clocks of file systems advance in steps: two states of a file within one step have one stamp."""
    path = tmp_path / "weights"
    for number in range(30):
        state = bytes([number]) + content[1:]
        with path.open("r+b" if number else "wb") as opened:
            opened.write(state)
        assert digest_of(path, tmp_path / "memory") == expected(state)


@same_folder
@given(data=st.data())
def test_a_damaged_memory_is_only_a_slower_opening(
    file: Path, content: bytes, tmp_path: Path, data: st.DataObject
) -> None:
    memory = tmp_path / "memory"
    assert digest_of(file, memory) == expected(content)
    (record,) = memory.iterdir()
    whole = record.read_bytes()
    damaged = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for place in data.draw(st.lists(st.integers(0, max(len(damaged) - 1, 0)), max_size=3)):
        if damaged:
            damaged[place] = data.draw(st.integers(0, 255))
    record.write_bytes(damaged + data.draw(st.binary(max_size=5)))
    assert digest_of(file, memory) == expected(content)
    assert record.read_bytes() == whole


def test_without_a_memory_the_file_is_read_again(file: Path, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a file").write_bytes(b"")
    for _ in range(2):
        assert digest_of(file, tmp_path / "a file" / "memory") == expected(content)


def test_the_memory_stays_small(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "_RECORDS", 10)
    for number in range(30):
        digest_of(Path(shutil.copy(file, tmp_path / f"{number}")), tmp_path / "memory")
    assert 5 <= len(list((tmp_path / "memory").iterdir())) <= 10


def test_processes_share_a_memory(content: bytes, tmp_path: Path) -> None:
    for number in range(8):
        (tmp_path / f"{number}").write_bytes(content)
    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as pool:
        work = [pool.submit(digests_of_copies, tmp_path, tmp_path / "memory") for _ in range(6)]
        assert {digest for job in work for digest in job.result()} == {expected(content)}
    assert len(list((tmp_path / "memory").iterdir())) == 8, "and no temporary file is left"


def test_the_hubs_own_sha256_is_taken(tmp_path: Path, content: bytes) -> None:
    """Blob names of large files are sha256, of small ones the git hash, which says nothing here."""
    named = {"a" * 64: "a" * 64, "b" * 40: hashlib.sha256(content).hexdigest()}
    for blob, known in named.items():
        (tmp_path / "blobs").mkdir(exist_ok=True)
        (tmp_path / "blobs" / blob).write_bytes(content)
        (tmp_path / "snapshot").symlink_to(tmp_path / "blobs" / blob)
        wanted = hashlib.sha256(f"weights\0{known}\n".encode()).hexdigest()
        assert digest_of(tmp_path / "snapshot", tmp_path / "memory") == wanted
        (tmp_path / "snapshot").unlink()


def test_names_and_contents_of_files_cannot_be_exchanged(tmp_path: Path) -> None:
    one, two = tmp_path / "1", tmp_path / "2"
    one.write_bytes(b"one")
    two.write_bytes(b"two")
    made = [{"a": one, "b": two}, {"a": two, "b": one}, {"a": one}, {"a": one, "b": one}, {"b": one}]
    assert len({identify(files, tmp_path / "memory").digest for files in made}) == len(made)


# Models in memory


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return build_gte(tmp_path / "gte", seed=3)


def test_equal_copies_are_two_models_and_one_fingerprint(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "link").symlink_to(folder)
    with Embedder(folder) as a, Embedder(copy) as b, Embedder(tmp_path / "link") as c:
        assert a.spec.fingerprint == b.spec.fingerprint == c.spec.fingerprint
        a.embed_queries(["text"])
        assert [e.stats()["forwards"] for e in (a, b, c)] == [1, 0, 1]


def reverse_weights(folder: Path) -> None:
    """Other numbers in the same file, in place."""
    file = folder / "model.safetensors"
    changed = {name: tensor.flip(0).contiguous() for name, tensor in load_file(file).items()}
    save_file(changed, folder / "changed")
    with file.open("r+b") as opened:
        opened.write((folder / "changed").read_bytes())
        opened.truncate()
    (folder / "changed").unlink()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rewriting_the_file_changes_no_open_model(tmp_path: Path, dtype: str) -> None:
    folder = build_gte(tmp_path / dtype, dtype=dtype)  # type: ignore[arg-type]
    with Embedder(folder, dtype="float32", memo_bytes=0) as embedder:
        before = embedder.embed_documents(TEXTS)
        reverse_weights(folder)
        after = embedder.embed_documents(TEXTS)
        np.testing.assert_array_equal(dense_of(before), dense_of(after))
        np.testing.assert_array_equal(sparse_of(before).values, sparse_of(after).values)
        with Embedder(folder, dtype="float32") as changed:
            assert changed.spec.fingerprint != embedder.spec.fingerprint
            assert not np.allclose(dense_of(changed.embed_documents(TEXTS)), dense_of(before), atol=1e-3)


def test_a_file_that_is_rewritten_while_it_is_loaded_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from twinvec.families.gte import Gte

    build = Gte.build

    def rewritten(*args: object) -> object:
        reverse_weights(folder)
        return build(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(Gte, "build", rewritten)
    with pytest.raises(CheckpointError, match="content has changed"):
        Embedder(folder)


def test_a_restart_refuses_other_weights_and_takes_a_touched_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from twinvec.compute.encoder import Encoder

    def lost(self: Encoder, batch: object) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    with Embedder(folder, dtype="float32", memo_bytes=0) as embedder:

        def lose() -> None:
            with monkeypatch.context() as patch:
                patch.setattr(Encoder, "_forward", lost)
                with pytest.raises(DeviceLostError):
                    embedder.embed_queries(["text"])

        lose()
        (folder / "model.safetensors").touch()
        embedder.restart()
        assert len(embedder.embed_queries(["text"])) == 1
        lose()
        reverse_weights(folder)
        with pytest.raises(CheckpointError, match="content has changed"):
            embedder.restart()


def test_a_spec_with_a_sampled_digest_is_refused_with_the_reason(folder: Path) -> None:
    spec = ModelSpec(model=str(folder), digest="0123456789abcdef" * 2)
    with pytest.raises(CheckpointError, match=r"sampled the weights.*from the model's name"):
        Embedder(spec)


# Rows on disk


def wait_for(condition: Callable[[], bool]) -> None:
    done = threading.Event()
    for _ in range(500):
        if condition():
            return
        done.wait(0.02)
    raise AssertionError("never happened")


def head_file(path: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    save_file({"weight": torch.randn(1, 64), "bias": torch.ones(1)}, path)
    return path


def test_a_dense_row_serves_whatever_gives_the_sparse_half(tmp_path: Path) -> None:
    folder = build_sentence_transformer(tmp_path / "bert", "bert")
    heads = [head_file(tmp_path / f"head{seed}.safetensors", seed) for seed in range(2)]
    with VectorCache(tmp_path / "cache") as cache:

        def embed(sparse: str | Path | None, *, halves: bool) -> tuple[np.ndarray, list[dict[int, float]], int]:
            kept = cache.stats()["entries"]
            with Embedder(folder, dtype="float32", sparse=sparse, cache=cache, memo_bytes=0) as embedder:
                batch = embedder.embed_documents(TEXTS, sparse=halves)
                texts = embedder.stats()["texts"]
                fresh = (sparse is None or halves) and texts > 0
                wait_for(lambda: not fresh or cache.stats()["entries"] > kept)
            rows = sparse_of(batch).to_dicts() if halves else []
            return dense_of(batch), rows, texts

        first, _, texts = embed(None, halves=False)
        assert texts == len(TEXTS)
        for sparse in (heads[0], heads[1], "bm25"):
            again, _, texts = embed(sparse, halves=False)
            assert texts == 0
            np.testing.assert_array_equal(again, first)
        rows = []
        for head in heads:
            for expected_texts in (len(TEXTS), 0):
                both, sparse_rows, texts = embed(head, halves=True)
                assert texts == expected_texts
                np.testing.assert_allclose(both, first, atol=1e-6)
                rows.append(sparse_rows)
        assert rows[0] == rows[1] != rows[2] == rows[3]
