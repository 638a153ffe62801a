"""`twinvec search` and `twinvec store`: what they print, and what they refuse."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.conftest import Run
from twinvec import Embedder
from twinvec_stores import EmbeddedStore, HybridIndex, StoreConfig

TEXTS = {
    "paris": "Paris is the capital of France",
    "moscow": "Москва — столица России",
    "sort": "sort a list\nin python",
}
YEARS = {"paris": 2019, "moscow": 2021, "sort": 2023}


@pytest.fixture(scope="module")
def embedder(gte: str) -> Iterator[Embedder]:
    with Embedder(gte, dtype="float32") as embedder:
        yield embedder


@pytest.fixture
def folder(embedder: Embedder, tmp_path: Path) -> Path:
    config = StoreConfig.for_embedder(embedder, fields={"year": "integer"})
    with HybridIndex(embedder, EmbeddedStore(tmp_path / "index", config)) as index:
        index.add(list(TEXTS.values()), ids=list(TEXTS), metadata=[{"year": YEARS[id]} for id in TEXTS])
    return tmp_path / "index"


def found(result: Any) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


class TestSearch:
    def test_the_store_brings_its_model(self, run: Run, folder: Path) -> None:
        (answer,) = found(run("search", folder, TEXTS["moscow"], "--json", "-k", 2))
        assert answer["query"] == TEXTS["moscow"]
        assert len(answer["results"]) == 2
        best = answer["results"][0]
        assert (best["id"], best["text"], best["metadata"]) == ("moscow", TEXTS["moscow"], {"year": 2021})

    @pytest.mark.parametrize("mode", ["dense", "sparse", "hybrid"])
    def test_modes_and_explanations(self, run: Run, folder: Path, embedder: Embedder, mode: str) -> None:
        (answer,) = found(run("search", folder, "столица", "--json", "--mode", mode, "--explain"))
        for result in answer["results"]:
            (pair,) = [("столица", result["text"])]
            why = result["explanation"]
            assert (why["dense_score"] is None) == (mode == "sparse")
            assert (why["sparse_score"] is None) == (mode == "dense")
            if mode != "sparse":
                expected = embedder.score_pairs([pair], sparse_weight=0)[0]
                assert why["dense_score"] == pytest.approx(expected, abs=1e-5)
            if mode != "dense":
                expected = embedder.score_pairs([pair], dense_weight=0, sparse_weight=1)[0]
                assert why["sparse_score"] == pytest.approx(expected, abs=1e-5)
                assert sum(a * b for _, a, b in why["terms"]) == pytest.approx(expected, abs=1e-4)

    def test_groups_and_neighbours(self, run: Run, tmp_path: Path, gte: str) -> None:
        """Documents of chunks "0 0 ...", "1 1 ...", each found chunk with the ones beside it."""
        path, index = tmp_path / "rows.jsonl", tmp_path / "index"
        texts = {
            id: "".join(f"{id} {i} {word} list. " for i in range(9)) for id, word in (("a", "sort"), ("b", "moscow"))
        }
        path.write_text("".join(json.dumps({"id": id, "text": text}) + "\n" for id, text in texts.items()))
        assert run("ingest", path, "--store", index, "--model", gte, "--chunk-tokens", 12).exit_code == 0
        options = ("-k", 2, "--group-by", "document", "--group-size", 2, "--expand", 1)
        (answer,) = found(run("search", index, "sort", "--json", *options))
        assert [result["id"].split("#")[0] for result in answer["results"]] in (
            ["a", "a", "b", "b"],
            ["b", "b", "a", "a"],
        )
        with EmbeddedStore(index) as store:
            chunks = {r.id: r.text for page in store.scroll_all() for r in page}
        for result in answer["results"]:
            document, number = result["id"].split("#")
            beside = [chunks.get(f"{document}#{int(number) + step}", "") for step in (-1, 0, 1)]
            assert result["context"] == "".join(beside)

    def test_fusion_and_weights(self, run: Run, folder: Path, embedder: Embedder) -> None:
        options = ("--fusion", "weighted", "--dense-weight", 2, "--sparse-weight", 0.5)
        (answer,) = found(run("search", folder, "sort", "--json", *options))
        for result in answer["results"]:
            expected = embedder.score_pairs([("sort", result["text"])], dense_weight=2, sparse_weight=0.5)[0]
            assert result["score"] == pytest.approx(expected, abs=1e-4)

    def test_what_the_store_says_is_followed_where_nothing_is_said(
        self, run: Run, folder: Path, embedder: Embedder
    ) -> None:
        with HybridIndex(embedder, EmbeddedStore(folder)) as index:
            index.set_search(min_dense=0.999)
        (answer,) = found(run("search", folder, TEXTS["moscow"], "--json"))
        assert [result["id"] for result in answer["results"]] == ["moscow"]
        (answer,) = found(run("search", folder, TEXTS["moscow"], "--json", "--min-dense", -1))
        assert len(answer["results"]) == 3

    def test_filter_and_threshold(self, run: Run, folder: Path) -> None:
        for filter in ('{"year": {"$gte": 2020}}', "year>=2020", ' "year" >= 2020 '):
            (answer,) = found(run("search", folder, "x", "--json", "--filter", filter))
            assert {result["id"] for result in answer["results"]} == {"moscow", "sort"}
        (answer,) = found(run("search", folder, TEXTS["sort"], "--json", "--mode", "dense", "--threshold", 0.9999))
        assert [result["id"] for result in answer["results"]] == ["sort"]

    def test_filters_by_keys_and_dates_as_people_have_them(self, run: Run, tmp_path: Path, gte: str) -> None:
        rows: list[dict[str, Any]] = [
            {"id": "flat", "a.b": 1, "day": "2025-01-01T01:00:00+02:00"},
            {"id": "nested", "a": {"b": 1}, "day": "2025-01-01"},
            {"id": "list", "tags": [{"id": 5}, {"id": 6}], "day": "2025-01-01T00:30"},
            {"id": "named", "a key": "x=1"},
        ]
        path, index = tmp_path / "rows.jsonl", tmp_path / "index"
        path.write_text("".join(json.dumps({"text": "sort", **row}) + "\n" for row in rows))
        options = ("--model", gte, "--field", "day:datetime")
        assert run("ingest", path, "--store", index, *options).exit_code == 0
        for filter, expected in {
            "a.b=1": {"flat", "nested"},
            '"a.b"=1': {"flat"},
            "tags.id>5": {"list"},
            "tags[].id=5": {"list"},
            "tags[].id!=5": {"flat", "nested", "named"},
            '"a key"=x=1': {"named"},
            "day>=2025-01-01": {"nested", "list"},
            "day<2025-01-01T00:30:00Z": {"flat", "nested"},
            "day<=2025-01-01T03:30:00+03:00": {"flat", "nested", "list"},
        }.items():
            (answer,) = found(run("search", index, "sort", "--json", "--filter", filter))
            assert {result["id"] for result in answer["results"]} == expected, filter

    def test_queries_from_stdin(self, run: Run, folder: Path) -> None:
        answers = found(run("search", folder, "-", "--json", "-k", 1, stdin=f"{TEXTS['paris']}\n\n{TEXTS['moscow']}\n"))
        assert [answer["results"][0]["id"] for answer in answers] == ["paris", "moscow"]

    def test_the_table_is_readable(self, run: Run, folder: Path) -> None:
        result = run("search", folder, "capital of France", "--explain", "-k", 1)
        assert result.exit_code == 0
        assert max(map(len, result.stdout.splitlines())) <= 80
        for part in ("capital of France", "paris", "Paris is the capital of France", "rank 1", "dense", "sparse"):
            assert part in result.stdout

    def test_nothing_found_is_said(self, run: Run, folder: Path) -> None:
        result = run("search", folder, "x", "--filter", '{"year": 1}')
        assert (result.exit_code, result.stdout.strip()) == (0, "x: nothing found")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--filter", "{"], "--filter: neither field>=value nor JSON"),
            (["--filter", '{"year": {"$near": 1}}'], "$near"),
            (["--mmr", "2"], "mmr=2.0"),
            (["--dense-weight", "0", "--sparse-weight", "0"], "must not both be 0"),
            (["--collection", "x"], "only for a server"),
        ],
    )
    def test_wrong_options(self, run: Run, folder: Path, options: list[str], message: str) -> None:
        result = run("search", folder, "x", *options)
        assert result.exit_code == 2
        assert result.stdout == ""
        assert message in result.stderr
        assert "Traceback" not in result.stderr

    def test_no_store_and_no_queries(self, run: Run, folder: Path, tmp_path: Path) -> None:
        result = run("search", tmp_path / "nowhere", "x")
        assert (result.exit_code, result.stdout) == (2, "")
        assert "there is no store" in result.stderr
        assert not (tmp_path / "nowhere").exists()
        assert "no queries on stdin" in run("search", folder, "-", stdin="\n").stderr

    def test_a_store_that_does_not_tell_its_model(self, run: Run, tmp_path: Path) -> None:
        EmbeddedStore(tmp_path / "bare", StoreConfig(fingerprint="f", dim=2, sparse=False)).close()
        result = run("search", tmp_path / "bare", "x")
        assert result.exit_code == 2
        assert "does not record how to load its model" in result.stderr


class TestStore:
    def test_info(self, run: Run, folder: Path, embedder: Embedder) -> None:
        result = run("store", "info", folder, "--json")
        facts = json.loads(result.stdout)
        assert (facts["engine"], facts["records"], facts["has_graph"]) == ("embedded", 3, False)
        assert facts["bytes"] > 0
        assert facts["config"]["fingerprint"] == embedder.spec.fingerprint
        table = run("store", "info", folder).stdout
        for part in ("Records", "3", "year (integer)", "dense, 64 dimensions; sparse", embedder.spec.fingerprint):
            assert part in table

    def test_optimize_keeps_everything(self, run: Run, folder: Path) -> None:
        result = run("store", "optimize", folder)
        assert result.exit_code == 0, result.stderr
        assert result.stdout.startswith("3 records")
        (answer,) = found(run("search", folder, TEXTS["paris"], "--json", "-k", 1))
        assert answer["results"][0]["id"] == "paris"

    @pytest.mark.parametrize("name", ["all.jsonl", "all.jsonl.gz"])
    def test_export_and_import_carry_everything(self, run: Run, folder: Path, tmp_path: Path, name: str) -> None:
        result = run("store", "export", folder, tmp_path / name)
        assert (result.stderr, result.stdout) == ("", f"3 records written to {tmp_path / name}\n")
        result = run("store", "import", tmp_path / name, tmp_path / "copy")
        assert result.exit_code == 0, result.stderr
        for one, two in zip(contents(folder), contents(tmp_path / "copy"), strict=True):
            assert one == two
        again = run("store", "import", tmp_path / name, tmp_path / "copy")
        assert "has 3" in again.stdout

    def test_import_can_change_the_settings(self, run: Run, folder: Path, tmp_path: Path) -> None:
        run("store", "export", folder, tmp_path / "all.jsonl")
        assert (
            run("store", "import", tmp_path / "all.jsonl", tmp_path / "small", "--quantization", "int8").exit_code == 0
        )
        with EmbeddedStore(tmp_path / "small") as store:
            assert (store.config.quantization, store.config.fields) == ("int8", {"year": "integer"})

    def test_damaged_files_are_named(self, run: Run, folder: Path, tmp_path: Path) -> None:
        run("store", "export", folder, tmp_path / "all.jsonl")
        lines = (tmp_path / "all.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        damages = {
            "cut.jsonl": "".join(lines[:3]),
            "half.jsonl": "".join(lines)[:-400],
            "foreign.jsonl": '{"text": "a"}\n',
            "empty.jsonl": "",
            "record.jsonl": "".join([lines[0], '{"id": "x"}\n', *lines[1:]]),
            "base64.jsonl": "".join(lines).replace('"dense": "', '"dense": "!'),
        }
        for name, content in damages.items():
            (tmp_path / name).write_text(content, encoding="utf-8")
            result = run("store", "import", tmp_path / name, tmp_path / f"store-{name}")
            assert result.exit_code == 2, name
            assert name in result.stderr
            assert "Traceback" not in result.stderr
        (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress("".join(lines).encode())[:-20])
        assert "cut.jsonl.gz" in run("store", "import", tmp_path / "cut.jsonl.gz", tmp_path / "gz").stderr

    def test_another_models_file_is_refused(self, run: Run, folder: Path, tmp_path: Path) -> None:
        run("store", "export", folder, tmp_path / "all.jsonl")
        config = StoreConfig(fingerprint="another", model="another model", dim=64, sparse=True)
        EmbeddedStore(tmp_path / "other", config).close()
        result = run("store", "import", tmp_path / "all.jsonl", tmp_path / "other")
        assert result.exit_code == 2
        assert "another model" in result.stderr

    def test_an_export_is_whole_or_not_there(self, run: Run, folder: Path, tmp_path: Path) -> None:
        result = run("store", "export", folder, tmp_path / "no" / "such" / "folder.jsonl")
        assert result.exit_code == 2
        assert list(tmp_path.glob("**/*.new")) == []


def contents(folder: Path) -> list[tuple[Any, ...]]:
    with EmbeddedStore(folder) as store:
        records = [record for page in store.scroll_all(with_vectors=True) for record in page]
    return [
        (r.id, r.text, r.metadata, r.provenance, r.dense.tobytes(), r.sparse.to_dict())
        for r in records
        if r.dense is not None and r.sparse is not None
    ]
