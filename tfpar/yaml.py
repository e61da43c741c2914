"""Dictionaries, lists, texts, whole numbers and truth values as YAML, for `kubernetes`; texts are quoted where YAML could misread them."""

import json
import re
from collections.abc import Sequence

_PLAIN = re.compile(r"[A-Za-z/_][A-Za-z0-9/_.@:-]*(?<!:)", re.ASCII)
_WORDS_OF_YAML = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}


def text(documents: Sequence[dict]) -> str:
    """Return documents as YAML, the same text for the same documents.

    Raises:
        TypeError: there is something else in them than dictionaries, lists, texts, whole numbers and truth values.

    Example:
        >>> yaml.text([{"kind": "Job", "args": ["1", 1, True]}])
        'kind: Job\\nargs:\\n  - "1"\\n  - 1\\n  - true\\n'
    """
    return "---\n".join("\n".join(_lines(document)) + "\n" for document in documents)


def _lines(value) -> list[str]:
    if isinstance(value, dict) and value:
        lines = []
        for key, item in value.items():
            below = _lines(item)
            if isinstance(item, (dict, list)) and item:
                lines += [f"{_scalar(key)}:", *(f"  {line}" for line in below)]
            else:
                lines.append(f"{_scalar(key)}: {below[0]}")
        return lines
    if isinstance(value, list) and value:
        blocks = [_lines(item) for item in value]
        return [line for block in blocks for line in (f"- {block[0]}", *(f"  {more}" for more in block[1:]))]
    return [_scalar(value)]


def _scalar(value) -> str:
    if isinstance(value, (bool, int, dict, list)):  # dictionaries and lists that are empty
        return json.dumps(value)
    if not isinstance(value, str):
        raise TypeError(f"{value!r}: a manifest holds dictionaries, lists, texts, whole numbers and truth values")
    if _PLAIN.fullmatch(value) and value.lower() not in _WORDS_OF_YAML:
        return value
    return '"' + "".join(map(_escaped, value)) + '"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return f"\\{character}"
    return character if character.isprintable() else f"\\U{ord(character):08x}"
