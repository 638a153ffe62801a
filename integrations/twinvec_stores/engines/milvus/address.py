"""Addresses of Milvus servers, whose secrets are never shown."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

from twinvec.errors import ConfigurationError

SCHEME = "milvus://"
_PORT = 19530
_LOCAL = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Address:
    """Where a database of a server is.

    Attributes:
        uri: what pymilvus connects to, without secrets.
        token: "user:password" or a key; empty if there is none.
        database: empty for the server's default.
        shown: the address as users write it, without secrets.
    """

    uri: str
    token: str = field(repr=False)
    database: str
    shown: str

    @classmethod
    def parse(cls, url: str, token: str | None) -> Address:
        """Read a URL; secrets are only sent to another machine through TLS unless the URL says otherwise.

        Args:
            url: "milvus://user:password@host:19530/database?tls=true"; all but the host may be left out.
            token: used if the URL has no user.

        Raises:
            ConfigurationError: it cannot be read; the message does not repeat it.
        """
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port or _PORT
            options = dict(parse_qsl(parts.query, strict_parsing=True)) if parts.query else {}
            user, _, password = parts.netloc.rpartition("@")[0].partition(":")
            wrong = parts.netloc.count("@") > 1 or "/" in parts.path[1:] or bool(user) != bool(password)
            tls = {None: None, "true": True, "false": False}[options.pop("tls", None)]
        except (ValueError, KeyError):
            wrong, host = True, None
        if wrong or not host or options or parts.fragment or not url.startswith(SCHEME):
            raise ConfigurationError(
                "the address of the Milvus server cannot be read: write milvus://user:password@host:19530/database, "
                "of which only the host is needed, with ?tls=true or ?tls=false if you like, and with special "
                "characters of a password percent-encoded (@ is %40, / is %2F, # is %23)"
            )
        secret = f"{unquote(user)}:{unquote(password)}" if user else token or ""
        if tls is None:
            tls = bool(secret) and host not in _LOCAL
        place = f"{f'[{host}]' if ':' in host else host}:{port}"
        database = unquote(parts.path[1:])
        shown = f"{SCHEME}{place}/{database}".removesuffix("/")
        return cls(f"{'https' if tls else 'http'}://{place}", secret, database, shown)
