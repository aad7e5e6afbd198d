"""All mutants of some files, and a sample of them that depends on a seed and the code alone."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import cosmic_ray.plugins
from cosmic_ray.ast import ast_nodes, get_ast_from_path
from cosmic_ray.work_item import MutationSpec, WorkItem

from benchmarks.mutation.wiring import WiringProvider

cosmic_ray.plugins.OPERATOR_PROVIDERS["wiring"] = WiringProvider()


def all_mutants(files: Iterable[Path]) -> list[MutationSpec]:
    """Every mutant of every operator that takes no settings, in an order that depends on the code alone."""
    operators = [
        (name, operator_class())
        for name in sorted(cosmic_ray.plugins.operator_names())
        if not (operator_class := cosmic_ray.plugins.get_operator(name)).arguments()
    ]
    specs: list[MutationSpec] = []
    for file in sorted(files):
        nodes = list(ast_nodes(get_ast_from_path(file)))
        for name, operator in operators:
            specs += _mutants_of(file, nodes, name, operator)
    return specs


def _mutants_of(file: Path, nodes: list[Any], name: str, operator: Any) -> Iterator[MutationSpec]:
    occurrence = -1  # counted as cosmic-ray counts when it applies one
    for node in nodes:
        for start, end in operator.mutation_positions(node):
            occurrence += 1
            if not _declares(node):
                yield MutationSpec(file, name, occurrence, start, end)


def _declares(node: Any) -> bool:
    """Within an annotation, which nothing evaluates, or a decorator: no behaviour, and so nothing to notice."""
    child, parent = node, node.parent
    if child.type == "decorator":
        return True
    while parent is not None:
        if parent.type in ("annassign", "tfpdef") and child is parent.children[1 if parent.type == "annassign" else -1]:
            return True
        if parent.type == "funcdef" and child is parent.annotation:
            return True
        if parent.type == "decorator":
            return True
        child, parent = parent, parent.parent
    return False


def sample(mutants: Iterable[MutationSpec], count: int, seed: int) -> list[WorkItem]:
    """`count` places of the code, drawn evenly, and one mutant of each: an arithmetic operator has ten, a call one."""
    places: dict[tuple[Path, tuple[int, int]], list[MutationSpec]] = {}
    for mutant in mutants:
        places.setdefault((mutant.module_path, mutant.start_pos), []).append(mutant)
    drawn = random.Random(seed)
    chosen = drawn.sample(sorted(places), min(count, len(places)))
    return [WorkItem.single(f"{number:05}", drawn.choice(places[place])) for number, place in enumerate(chosen)]
