"""Goes through the graph that autograd has recorded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any


def nodes(starts: Iterable[Any], stops: Iterable[Any] = (), *, pieces: bool = False) -> Iterator[Any]:
    """Yield once each node that gradients come to from some nodes on, these included.

    starts, stops: nodes, or None for nothing; at a stop the way ends before it. pieces: whether to go through
    the graphs of pieces, too, which are differentiated by themselves.
    """
    seen = {None, *stops}
    pending = list(starts)
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        yield node
        run = getattr(node, "run", None) if pieces else None
        if run is not None:
            pending += [output.grad_fn for output in run.outputs]
        pending += [following for following, _ in node.next_functions]
