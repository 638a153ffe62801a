"""Hugging Face's hub and ModelScope: caches, downloads, refusals; no network."""

import hashlib
import logging
import os
import pickle
import sys
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
import pytest
import torch
from huggingface_hub import constants, errors
from huggingface_hub.utils import _http

from checkpoints.conftest import Handler, connect, unreachable
from checkpoints.folders import open_folder
from reference.checkpoint_files import write_json
from reference.sentence_layouts import build_bge_m3, build_sentence_transformer
from twinvec import Embedder
from twinvec.checkpoints.files import Checkpoint
from twinvec.checkpoints.hub import open_checkpoint
from twinvec.checkpoints.tensors import load_tensors
from twinvec.errors import CheckpointNotFoundError, ConfigurationError

pytestmark = pytest.mark.usefixtures("no_network")
REPO = "owner/name"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER_COMMIT = COMMIT[::-1]
TOKEN = "hf_averysecrettokenofnobody"


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
        path = request.url.path
        if REPO in path:  # threads of other libraries ask for other things
            self.tokens.add(request.headers.get("authorization"))
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


class GatedHub(FakeHub):
    """Answers those who were granted access; a token in an address would be in logs of proxies."""

    def __call__(self, request: httpx.Request) -> httpx.Response:
        assert TOKEN not in str(request.url)
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return httpx.Response(403, headers={"X-Error-Code": "GatedRepo"}, request=request)
        return super().__call__(request)


@pytest.mark.parametrize("given", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "argument"])
def test_a_gated_model_is_asked_for_with_the_token_which_is_shown_nowhere(
    gte: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, given: str
) -> None:
    connect(GatedHub(gte))
    caplog.set_level(logging.DEBUG)
    options: dict[str, Any] = {"dtype": "float32", "cache_dir": str(tmp_path / "cache")}
    if given == "argument":
        options["token"] = TOKEN
    else:
        monkeypatch.setenv(given, TOKEN)
    with Embedder(REPO, **options) as embedder:
        assert embedder.spec.revision == COMMIT
        shown = [repr(embedder), repr(embedder.spec), repr(embedder.options), repr(embedder.stats()), caplog.text]
        shown.append(pickle.dumps(embedder).decode("latin-1"))
    assert not any(TOKEN in each for each in shown)


@pytest.mark.parametrize("through", ["variable", "argument"])
def test_a_token_that_is_refused_is_in_no_line_of_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, through: str
) -> None:
    connect(answer(403, "GatedRepo"))
    if through == "variable":
        monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(CheckpointNotFoundError, match="set HF_TOKEN") as caught:
        Embedder(REPO, cache_dir=str(tmp_path), token=TOKEN if through == "argument" else None)
    assert TOKEN not in "".join(traceback.format_exception(caught.value))


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
