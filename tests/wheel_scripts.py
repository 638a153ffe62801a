"""Users' scripts for tests/wheels.py: what each extra promises. Arguments: a model with a lexical head, one without."""

from __future__ import annotations

_START = """
import sys
import warnings

warnings.simplefilter("error")
warnings.filterwarnings("ignore", category=DeprecationWarning)
warnings.filterwarnings("ignore", category=PendingDeprecationWarning)
gte, bert = sys.argv[1:]
TEXTS = ["Paris is the capital of France", "how to sort a list"]
"""

_NONE = (
    _START
    + """
import subprocess
from pathlib import Path

import twinvec
import twinvec_stores

assert "torch" not in sys.modules, "importing twinvec imports torch"
from twinvec import Embedder, TwinVecError
from twinvec_stores import EmbeddedStore, HybridIndex, MemoryStore, StoreConfig
from twinvec_stores.evaluation import Questions, evaluate

with Embedder(gte) as embedder:
    index = HybridIndex(embedder, MemoryStore(StoreConfig.for_embedder(embedder)))
    index.add(TEXTS, ids=["a", "b"])
    assert index.search(TEXTS[1], k=1)[0].record.id == "b"

    def missing(extra, action):
        try:
            action()
        except (TwinVecError, ImportError) as error:
            assert f"pip install 'twinvec[{extra}]'" in str(error), error
        else:
            raise AssertionError(extra)

    missing("embedded", lambda: EmbeddedStore("index", StoreConfig.for_embedder(embedder)))
    missing("bm25", lambda: Embedder(bert, sparse="bm25"))
    missing("langchain", lambda: __import__("langchain_twinvec"))
    missing("ray", lambda: __import__("twinvec_ray"))
    missing("llama-index", lambda: __import__("llama_index_twinvec"))
    config = StoreConfig.for_embedder(embedder)
    missing("milvus", lambda: twinvec_stores.open_store("milvus://localhost", config))
    missing("postgres", lambda: twinvec_stores.open_store("postgresql://localhost/x", config))
    missing("qdrant", lambda: twinvec_stores.QdrantStore("http://localhost:6333", "kb", config))
    missing("serve", lambda: __import__("twinvec.server").server.create_app(embedder))
    missing("metrics", lambda: __import__("twinvec.server.metrics"))
    missing("eval", lambda: evaluate(index, Questions({"q": "x"}, {"q": {"a": 1}})))

command = Path(sys.executable).with_name("twinvec")
shown = subprocess.run([command, "demo"], capture_output=True, text=True)
assert shown.returncode == 2 and "pip install 'twinvec[demo]'" in shown.stderr, shown
subprocess.run([command, "embed", gte, "some text", "--role", "query"], check=True, capture_output=True)
print("done")
"""
)

_BM25 = (
    _START
    + """
from twinvec import Embedder
from twinvec_stores import HybridIndex, MemoryStore, StoreConfig

with Embedder(bert, sparse="bm25") as embedder:
    index = HybridIndex(embedder, MemoryStore(StoreConfig.for_embedder(embedder)))
    index.add(TEXTS, ids=["a", "b"])
    assert index.search("sorting lists", k=1, mode="sparse")[0].record.id == "b"
print("done")
"""
)

_EMBEDDED = (
    _START
    + """
from twinvec import Embedder
from twinvec_stores import EmbeddedStore, HybridIndex, StoreConfig, ingest, open_store

with Embedder(gte) as embedder:
    with EmbeddedStore("index", StoreConfig.for_embedder(embedder)) as store:
        ingest([{"id": "a", "text": TEXTS[0]}, {"id": "b", "text": TEXTS[1]}], embedder, store)
    with open_store("index") as store:
        assert HybridIndex(embedder, store).search(TEXTS[0], k=1)[0].record.id == "a"
print("done")
"""
)

_QDRANT = (
    _START
    + """
from qdrant_client import QdrantClient

from twinvec import Embedder
from twinvec_stores import HybridIndex, QdrantStore, StoreConfig

warnings.simplefilter("ignore")  # the client warns of payload indexes that its own engine has not
with Embedder(gte) as embedder:
    store = QdrantStore(client=QdrantClient(":memory:"), collection="kb", config=StoreConfig.for_embedder(embedder))
    index = HybridIndex(embedder, store)
    index.add(TEXTS, ids=["a", "b"])
    assert index.search(TEXTS[0], k=1)[0].record.id == "a"
print("done")
"""
)

_POSTGRES = (
    _START
    + """
from twinvec import Embedder
from twinvec.errors import StoreEngineError
from twinvec_stores import PostgresStore, StoreConfig, open_store

with Embedder(gte) as embedder:
    try:
        open_store("postgresql://reader:secret@localhost:1/none", StoreConfig.for_embedder(embedder))
    except StoreEngineError as error:  # as nothing listens there
        assert "localhost:1/none" in str(error) and "secret" not in str(error), error
assert PostgresStore.__name__ == "PostgresStore"
print("done")
"""
)

_MILVUS = (
    _START
    + """
from twinvec import Embedder
from twinvec.errors import StoreEngineError
from twinvec_stores import MilvusStore, StoreConfig

with Embedder(gte) as embedder:
    try:
        MilvusStore("milvus://reader:secret@localhost:1/none", "kb", StoreConfig.for_embedder(embedder), timeout=1)
    except StoreEngineError as error:  # as nothing listens there
        assert "localhost:1/none" in str(error) and "secret" not in str(error), error
print("done")
"""
)

_PARQUET = (
    _START
    + """
import pyarrow
import pyarrow.parquet

from twinvec import Embedder
from twinvec_stores import MemoryStore, StoreConfig, ingest

pyarrow.parquet.write_table(pyarrow.table({"id": ["a", "b"], "text": TEXTS}), "texts.parquet")
with Embedder(gte) as embedder:
    store = MemoryStore(StoreConfig.for_embedder(embedder))
    assert ingest("texts.parquet", embedder, store).new == 2
print("done")
"""
)

_EVAL = (
    _START
    + """
from twinvec import Embedder
from twinvec_stores import HybridIndex, MemoryStore, StoreConfig
from twinvec_stores.evaluation import Questions, evaluate

with Embedder(gte) as embedder:
    index = HybridIndex(embedder, MemoryStore(StoreConfig.for_embedder(embedder)))
    index.add(TEXTS, ids=["a", "b"])
    found = evaluate(index, Questions({"q": TEXTS[0]}, {"q": {"a": 1}}))
    assert found.ways["hybrid"].mean("nDCG@10") == 1
print("done")
"""
)

_METRICS = (
    _START
    + """
from prometheus_client import CollectorRegistry, generate_latest

from twinvec import Embedder
from twinvec.server.metrics import PrometheusCollector

with Embedder(gte) as embedder:
    registry = CollectorRegistry()
    registry.register(PrometheusCollector(embedder))
    embedder.embed_queries(TEXTS)
    assert b"twinvec_texts_total" in generate_latest(registry)
print("done")
"""
)

_SERVE = (
    _START
    + """
import re
import subprocess
from pathlib import Path

from twinvec import Embedder, RemoteEmbedder

command = [Path(sys.executable).with_name("twinvec"), "serve", gte, "--port", "0"]
server = subprocess.Popen(command, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True)
try:
    printed = ""
    for line in server.stdout:
        printed += line
        if found := re.search(r"http://127\\.0\\.0\\.1:\\d+", line):
            break
    else:
        raise AssertionError(printed)
    with RemoteEmbedder(found[0]) as remote:
        assert "torch" not in sys.modules
        rows = remote.embed_documents(TEXTS)
finally:
    server.terminate()
    server.wait(60)
with Embedder(gte) as embedder:
    assert (embedder.embed_documents(TEXTS).dense == rows.dense).all()
print("done")
"""
)

_LANGCHAIN = (
    _START
    + """
from langchain_twinvec import TwinVecEmbeddings, TwinVecVectorStore

store = TwinVecVectorStore(TwinVecEmbeddings(model=gte))
store.add_texts(TEXTS, [{"n": 0}, {"n": 1}])
assert store.similarity_search(TEXTS[1], k=1, filter={"n": 1})[0].page_content == TEXTS[1]
assert store.as_retriever(k=1).invoke(TEXTS[0])[0].page_content == TEXTS[0]
print("done")
"""
)

_LLAMA_INDEX = (
    _START
    + """
warnings.simplefilter("ignore")
from llama_index.core import Document, StorageContext, VectorStoreIndex
from llama_index_twinvec import HybridRetriever, TwinVecEmbedding, TwinVecVectorStore

embed_model = TwinVecEmbedding(model_name=gte)
store = TwinVecVectorStore(embed_model)
storage = StorageContext.from_defaults(vector_store=store)
nodes = [Document(text=text) for text in TEXTS]
index = VectorStoreIndex(nodes, storage_context=storage, embed_model=embed_model)
assert index.as_retriever(similarity_top_k=1).retrieve(TEXTS[1])[0].get_content() == TEXTS[1]
assert HybridRetriever(store, similarity_top_k=1).retrieve(TEXTS[0])[0].get_content() == TEXTS[0]
print("done")
"""
)

_DEMO = """
import socket
import sys

def refuse(*arguments):
    raise OSError(f"the demo asked for the network: {arguments}")

socket.getaddrinfo = socket.socket.connect = refuse
sys.argv = ["twinvec", "demo"]
from twinvec_cli.main import run

try:
    run()
except SystemExit as end:
    assert not end.code, end
print("done")
"""

# extra -> script; "none": without one
_TRACING = (
    _START
    + """
from opentelemetry import trace
from twinvec import Embedder

with Embedder(bert) as embedder, trace.get_tracer("program").start_as_current_span("outer"):
    assert embedder.embed_queries(TEXTS).dense.shape[0] == len(TEXTS)
print("done")
"""
)

_RAY = (
    _START
    + """
warnings.simplefilter("ignore")  # Ray's own

import ray

import twinvec_ray
from twinvec_stores import ShardFolder, read_export

ray.init("local", num_cpus=2, object_store_memory=100_000_000, include_dashboard=False)
rows = ray.data.from_items([{"id": str(i), "text": text} for i, text in enumerate(TEXTS)])
report = twinvec_ray.ingest(TEXTS, gte, ShardFolder("shards"), workers=twinvec_ray.Workers(cpus=1))
assert (report.new, report.failed) == (2, 0)
assert [record.text for record in read_export("shards")[1]] == TEXTS
assert "sparse_values" in twinvec_ray.embed_dataset(rows, gte, workers=twinvec_ray.Workers(cpus=0.5)).take(1)[0]
ray.shutdown()
print("done")
"""
)

SCRIPTS = {
    "none": _NONE,
    "bm25": _BM25,
    "embedded": _EMBEDDED,
    "milvus": _MILVUS,
    "postgres": _POSTGRES,
    "qdrant": _QDRANT,
    "parquet": _PARQUET,
    "eval": _EVAL,
    "metrics": _METRICS,
    "serve": _SERVE,
    "langchain": _LANGCHAIN,
    "llama-index": _LLAMA_INDEX,
    "tracing": _TRACING,
    "ray": _RAY,
    "demo": _DEMO,
}

# environment -> a user's script for `mypy --strict`
TYPED = {
    "none": """
from twinvec import Embedder
from twinvec_stores import HybridIndex, MemoryStore, StoreConfig

embedder = Embedder("model", dim=256)
index = HybridIndex(embedder, MemoryStore(StoreConfig.for_embedder(embedder)))
scores: list[float] = [result.score for result in index.search("question", k=3, mode="hybrid")]
""",
    "langchain": """
from langchain_twinvec import TwinVecEmbeddings, TwinVecVectorStore

store = TwinVecVectorStore(TwinVecEmbeddings(model="model", dim=256), path="index/")
texts: list[str] = [document.page_content for document in store.similarity_search("question", k=3)]
found = store.as_retriever(k=3).invoke("question")
""",
    "llama-index": """
from llama_index_twinvec import HybridRetriever, TwinVecEmbedding, TwinVecVectorStore

store = TwinVecVectorStore(TwinVecEmbedding(model_name="model", dim=256), path="index/")
scores: list[float | None] = [node.score for node in HybridRetriever(store).retrieve("question")]
""",
}

# environment -> what is right, a mistake, the code by which mypy must see it (LangChain's search methods take Any)
_DIM = ("dim=256", 'dim="256"', "arg-type")
MISTAKES = {
    "none": [_DIM, ('mode="hybrid"', 'mode="hybird"', "arg-type")],
    "langchain": [_DIM],
    "llama-index": [_DIM],
}
