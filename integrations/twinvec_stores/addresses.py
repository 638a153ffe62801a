"""Addresses as they may be shown: without users, passwords, keys and signatures."""

from __future__ import annotations

import re

# users end at the last @ before the path, or, where what looks like a port is not a number, at the last one of all
_SECRET = re.compile(r"(?<=://)(?:[^/?#]*@|[^/?#\[]*:(?!\d*(?:[,/?#]|$))[^?#]*@)|[?#].*", re.DOTALL)
_ADDRESS = re.compile(r"\w[\w+.-]*://[^\s'\"<>]+")


def without_secrets(location: str) -> str:
    """Return a folder as it is, and of an address the scheme, host and path.

    Users are left out as well as passwords, since a key may stand in their place; and all parameters, since their names
    may be percent-encoded.
    """
    return _SECRET.sub("", location) if "://" in location else location


def hide_secrets(message: str, address: str) -> str:
    """Return the message of an error about an address, with it and all other addresses as they may be shown."""
    return _ADDRESS.sub(lambda found: without_secrets(found[0]), message.replace(address, without_secrets(address)))
