"""Addresses as they may be shown."""

from __future__ import annotations

from urllib.parse import quote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinvec_stores.addresses import hide_secrets, without_secrets


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql://u:hunter2@h:1/db?a=b&password=hunter2", "postgresql://h:1/db"),
        ("postgresql://u@h1:1,h2:2/db?pass%77ord=hunter2", "postgresql://h1:1,h2:2/db"),
        ("milvus://u:hunter2@[::1]:19530/db?tls=true", "milvus://[::1]:19530/db"),
        ("https://hunter2@host:6333/qdrant/#hunter2", "https://host:6333/qdrant/"),
        ("https://u:p%40hunter2@host", "https://host"),
        ("https://u:hun@ter2@host/a@b", "https://host/a@b"),
        ("https://u:hun/ter2@host/a", "https://host/a"),
        ("postgresql://u:1hun/ter2@host/a", "postgresql://host/a"),
        ("s3://key:hunter2@bucket/a@b/c:d@e.txt?versionId=hunter2", "s3://bucket/a@b/c:d@e.txt"),
        ("https://host:443/a@b.txt?X-Amz-Signature=hunter2\nhunter2", "https://host:443/a@b.txt"),
        ("simplecache::s3://key:hunter2@bucket/a.csv", "simplecache::s3://bucket/a.csv"),
        ("zip://a.csv::https://hunter2@host/a.zip?hunter2", "zip://host/a.zip"),
        ("postgresql:///db?host=/run", "postgresql:///db"),
        ("index/a@b:c?d#e", "index/a@b:c?d#e"),
    ],
)
def test_what_of_an_address_is_shown(address: str, shown: str) -> None:
    assert without_secrets(address) == shown


words = st.text(min_size=1)
names = st.text("abc.-", min_size=1)


@given(words, words, words, names, st.none() | st.integers(0, 65535), names)
def test_what_is_encoded_as_it_should_be_is_hidden(
    user: str, password: str, key: str, host: str, port: int | None, path: str
) -> None:
    secret = f"{quote(user, '')}:{quote(password, '')}@"
    place = host if port is None else f"{host}:{port}"
    shown = without_secrets(f"https://{secret}{place}/{path}@x?key={quote(key, '')}#{quote(key, '')}")
    parts = urlsplit(shown)
    assert shown == f"https://{place}/{path}@x"
    assert (parts.username, parts.password, parts.query, parts.fragment) == (None, None, "", "")


def test_errors_repeat_no_secrets() -> None:
    address = "https://u:hunter 2@host/a b.csv?sig=hunter2"
    message = f"{address} and 'https://u:hunter%202@host/a%20b.csv?sig=hunter2', then <http://other:1/?hunter2>. Why?"
    hidden = hide_secrets(message, address)
    assert hidden == "https://host/a b.csv and 'https://host/a%20b.csv', then <http://other:1/>. Why?"
