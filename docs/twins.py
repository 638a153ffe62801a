"""For the API reference: async twins, which the code makes of methods, are documented as the methods that they are."""

from __future__ import annotations

import ast
import re
from typing import Any

from griffe import Attribute, Docstring, Extension, Function, Object, ObjectNode

MADE = re.compile(r"(?:heard\()?awaiting\((\w+)")


class Twins(Extension):
    """Replaces ``aget = awaiting(get)`` by an async function with the parameters of ``get``."""

    def on_members(self, *, node: ast.AST | ObjectNode, obj: Object, **kwargs: Any) -> None:
        """Look at the assignments of a class or module."""
        for name, member in list(obj.members.items()):
            if isinstance(member, Attribute) and (made := MADE.match(str(member.value))):
                method = obj.members[made[1]]
                assert isinstance(method, Function)
                method.labels.discard("async")
                twin = Function(
                    name,
                    lineno=member.lineno,
                    endlineno=member.endlineno,
                    parameters=method.parameters,
                    returns=method.returns,
                    docstring=Docstring(f"See `{method.name}`."),
                )
                twin.labels.add("async")
                obj.set_member(name, twin)
