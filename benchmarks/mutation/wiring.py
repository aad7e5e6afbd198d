"""Mutations of how code is connected, which cosmic-ray's own operators leave alone: calls and their arguments.

Plausible bugs of this kind were the ones that tests did not notice: two arguments swapped, one not handed on, a call
left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import parso
from cosmic_ray.operators.operator import Example, Operator

Position = tuple[int, int]

_LOGGERS = ("log", "logging", "print")


def _arguments(node: Any) -> list[Any]:
    """The arguments of a call (commas left out), if `node` is the list of them."""
    if node.type != "arglist" or node.parent.type != "trailer":
        return []
    return [child for child in node.children if child.type != "operator"]


def _is_positional(argument: Any) -> bool:
    return argument.type != "argument"


def _in_any_order(node: Any) -> bool:
    """Whether these are the arguments of `min` or `max`."""
    called = node.parent.get_previous_sibling()
    return called is not None and called.type == "name" and called.value in ("min", "max")


class SwapArguments(Operator):
    """Two positional arguments that follow each other, swapped; not those of `min` and `max`."""

    def _pairs(self, node: Any) -> list[tuple[Any, Any]]:
        given = _arguments(node)
        if given and _in_any_order(node):
            return []
        return [
            (first, second)
            for first, second in pairwise(given)
            if _is_positional(first)
            and _is_positional(second)
            and first.get_code().strip() != second.get_code().strip()
        ]

    def mutation_positions(self, node: Any) -> Iterator[tuple[Position, Position]]:
        for first, second in self._pairs(node):
            yield first.start_pos, second.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        first, second = self._pairs(node)[index]
        places = [node.children.index(first), node.children.index(second)]
        codes = [first.get_code(include_prefix=False), second.get_code(include_prefix=False)]
        for place, argument, code in zip(places, (first, second), reversed(codes), strict=True):
            node.children[place] = _leaf(argument, code)
        return node

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        return (
            Example("f(a, b, c=1)", "f(b, a, c=1)"),
            Example("f(a, g(b), c)", "f(a, c, g(b))", occurrence=1),
            Example("f(max(a, b), c)", "f(c, max(a, b))"),
        )


class DropKeywordArgument(Operator):
    """An argument handed on by name, left out: the default stands."""

    def _named(self, node: Any) -> list[Any]:
        named = [each for each in _arguments(node) if each.type == "argument" and each.children[1] == "="]
        return [each for each in named if each.children[0].value != "strict"]  # of `zip`: an assertion, no behaviour

    def mutation_positions(self, node: Any) -> Iterator[tuple[Position, Position]]:
        for argument in self._named(node):
            yield argument.start_pos, argument.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        place = node.children.index(self._named(node)[index])
        # With the comma behind it, or, of the last argument, the one before it.
        del node.children[place : place + 2]
        if node.children and place == len(node.children) and node.children[-1] == ",":
            del node.children[-1]
        return node

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        return Example("f(a, b=1, c=2)", "f(a, c=2)"), Example("f(a, b=1, c=2)", "f(a, b=1)", occurrence=1)


class DropCall(Operator):
    """A statement that is a call and nothing else, left out."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[Position, Position]]:
        if node.type != "atom_expr" or node.parent.type not in ("simple_stmt", "suite", "file_input"):
            return
        last = node.children[-1]
        is_call = last.type == "trailer" and last.children[0] == "("
        if is_call and getattr(node.children[0], "value", "") not in _LOGGERS:
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        return _leaf(node, "pass")

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        return (
            Example("x.f(1)\nlog.info('x')\ny = f()", "pass\nlog.info('x')\ny = f()"),
            Example("if x:\n    f()\n    g()\n", "if x:\n    f()\n    pass\n", occurrence=1),
        )


def _leaf(node: Any, code: str) -> Any:
    """A stand-in for `node` with its white space before it."""
    return parso.python.tree.Name(code, node.start_pos, prefix=node.get_first_leaf().prefix)


OPERATORS: dict[str, type[Operator]] = {
    operator.__name__: operator for operator in (SwapArguments, DropKeywordArgument, DropCall)
}


class WiringProvider:
    """The operators by name, as cosmic-ray asks for them."""

    def __iter__(self) -> Iterator[str]:
        return iter(OPERATORS)

    def __getitem__(self, name: str) -> type[Operator]:
        return OPERATORS[name]
