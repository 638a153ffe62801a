"""Addresses of PostgreSQL databases, whose passwords are never shown."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from twinvec.errors import ConfigurationError

SCHEMES = ("postgresql://", "postgres://")
_LOCAL = ("", "localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Address:
    """Where a database is.

    Attributes:
        conninfo: what libpq connects with; may contain a password.
        shown: the same without secrets.
    """

    conninfo: str = field(repr=False)
    shown: str

    @classmethod
    def parse(cls, url: str, timeout: float) -> Address:
        """Read a URL; another machine is only spoken to through TLS unless the URL says otherwise.

        Args:
            url: "postgresql://user@host:5432/database"; its parameters are libpq's.
            timeout: seconds for making a connection, unless the URL has its own ``connect_timeout``.

        Raises:
            ConfigurationError: it cannot be read; the message does not repeat it.
        """
        parameters = _parameters(url)
        parameters.setdefault("connect_timeout", max(2, round(timeout)))
        parameters.setdefault("application_name", "twinvec")
        parameters["client_encoding"] = "UTF8"
        hosts = str(parameters.get("host") or parameters.get("hostaddr") or os.environ.get("PGHOST", "")).split(",")
        elsewhere = [host for host in hosts if host not in _LOCAL and host[0] not in "/@"]
        chosen = {"sslmode", "service"} & set(parameters) or {"PGSSLMODE", "PGSERVICE"} & set(os.environ)
        if elsewhere and not chosen:
            parameters["sslmode"] = "require"
        user = f"{parameters['user']}@" if "user" in parameters else ""
        port = f":{parameters['port']}" if "port" in parameters else ""
        shown = f"postgresql://{user}{','.join(hosts)}{port}/{parameters.get('dbname', '')}"
        return cls(make_conninfo("", **parameters), shown)


def _parameters(url: str) -> dict[str, Any]:
    try:
        if not url.startswith(SCHEMES) or urlsplit(url).netloc.count("@") > 1:
            raise ProgrammingError
        return dict(conninfo_to_dict(url))
    except (ProgrammingError, ValueError):  # their messages repeat parts of it
        raise ConfigurationError(
            "the address of the database cannot be read: write postgresql://user@host:5432/database, with special "
            "characters of a password percent-encoded (@ is %40, / is %2F, # is %23)"
        ) from None
