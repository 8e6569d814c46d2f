"""The part of Go's templates that our chart is written in, so that it is read where helm is not.

Actions: `{{ EXPRESSION }}`, `range $NAME := EXPRESSION`, `if EXPRESSION`, `end`, with `-` to trim.
Expressions: `.a.b`, `$.a.b`, `$name`, numbers, parentheses, pipes, and the functions below.
Anything else raises: a chart that needs more is to be read by helm alone.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_ACTION = re.compile(r"(?:\s*\{\{-|\{\{)\s*(.*?)\s*(?:-\}\}\s*|\}\})", re.DOTALL)
_WORD = re.compile(r"\s*([()|]|[^\s()|]+)")
FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "add": lambda *numbers: sum(numbers),
    "mul": lambda *numbers: math.prod(numbers),
    "div": lambda one, other: one // other,
    "int": int,
    "until": range,
    "quote": lambda text: json.dumps(str(text)),
}


def rendered(template: str, about: Mapping[str, Any]) -> str:
    """The text that the template makes. about: Values, Release, ..."""
    return _Rendering(template, about).text()


@dataclass(frozen=True)
class _Rendering:
    template: str
    about: Mapping[str, Any]

    def text(self) -> str:
        parts, at = [], 0
        for action in _ACTION.finditer(self.template):
            parts += [("text", self.template[at : action.start()]), ("do", action[1])]
            at = action.end()
        parts.append(("text", self.template[at:]))
        text, end = self._block(parts, 0, {})
        if end != len(parts):
            raise ValueError("expected as many ends as blocks, got one more")
        return text

    def _block(
        self, parts: list[tuple[str, str]], at: int, names: Mapping[str, Any]
    ) -> tuple[str, int]:
        """The text up to this block's end, and where that is."""
        out = ""
        while at < len(parts) and parts[at] != ("do", "end"):
            kind, what = parts[at]
            word, _, rest = what.partition(" ")
            if kind == "text":
                out += what
            elif word == "if":
                inner, at = self._block(parts, at + 1, names)
                out += inner if self._value(rest, names) else ""
            elif word == "range":
                name, _, over = rest.partition(" := ")
                begin, (_, at) = at + 1, self._block(parts, at + 1, {**names, name: 0})
                for each in self._value(over, names):
                    out += self._block(parts, begin, {**names, name: each})[0]
            else:
                out += str(self._value(what, names))
            at += 1
        return out, at

    def _value(self, expression: str, names: Mapping[str, Any]) -> Any:
        words = _WORD.findall(expression)
        value = self._pipeline(words, names)
        if words:
            raise ValueError(f"{expression}: expected an end, got {words[0]}")
        return value

    def _pipeline(self, words: list[str], names: Mapping[str, Any]) -> Any:
        value = self._call(words, names)
        while words and words[0] == "|":
            value = FUNCTIONS[words.pop(1)](value)
            del words[0]
        return value

    def _call(self, words: list[str], names: Mapping[str, Any]) -> Any:
        terms = []
        while words and words[0] not in ("|", ")"):
            terms.append(self._term(words, names))
        first, *others = terms
        return first(*others) if callable(first) else first

    def _term(self, words: list[str], names: Mapping[str, Any]) -> Any:
        word = words.pop(0)
        if word == "(":
            value = self._pipeline(words, names)
            words.pop(0)
            return value
        if word in names:
            return names[word]
        if word in FUNCTIONS:
            return FUNCTIONS[word]
        if word.isdecimal():
            return int(word)
        if not word.removeprefix("$").startswith("."):
            raise ValueError(f"{word}: expected a name or a function of those that are known here")
        value: Any = self.about
        for step in word.removeprefix("$").split(".")[1:]:
            value = value[step]
        return value
