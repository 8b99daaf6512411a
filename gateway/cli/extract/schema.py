"""The schema of a job: a file, or a Python type by `module:name`."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

from gateway.cli.errors import BAD_USAGE, CommandError
from gateway.cli.generate import read_text


def read_schema(source: str) -> str:
    """Return the text of a JSON Schema: a file's, or that of a Pydantic model, dataclass or any type Pydantic knows.

    Raises:
        CommandError: there is no such file or type, or no schema can be made of it.
    """
    module, separator, name = source.rpartition(":")
    if not separator or Path(source).exists():
        return read_text(Path(source))
    return json.dumps(_type(module, name), ensure_ascii=False)


def _type(module: str, name: str) -> dict[str, Any]:
    """Return the schema of a type; modules of the working directory are found, too."""
    from pydantic import TypeAdapter  # noqa: PLC0415  # takes long, and files do without it
    from pydantic.errors import PydanticUserError  # noqa: PLC0415

    sys.path.insert(0, "")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
        return TypeAdapter(found).json_schema()
    except (ImportError, AttributeError) as error:
        raise CommandError(f"--schema {module}:{name}: {error}", BAD_USAGE) from None
    except PydanticUserError as error:
        raise CommandError(
            f"--schema {module}:{name}: no JSON Schema can be made of it: {error.message}", BAD_USAGE
        ) from None
    finally:
        sys.path.remove("")


def columns_of(schema: str) -> list[str]:
    """Return the names of a record's properties, in order, as far as the schema's outermost object says."""
    try:
        value = json.loads(schema)
    except ValueError:
        return []
    # A recursive type of Pydantic's is a reference to its own definition.
    reference = value.get("$ref", "") if isinstance(value, dict) else ""
    if reference.startswith("#/"):
        inner: Any = value
        for step in reference.removeprefix("#/").split("/"):
            inner = inner.get(step, {}) if isinstance(inner, dict) else {}
        value = inner
    properties = value.get("properties") if isinstance(value, dict) else None
    return list(properties) if isinstance(properties, dict) else []
