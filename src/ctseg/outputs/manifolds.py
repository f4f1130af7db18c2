"""Make a closed surface one that every reader calls closed: each edge belongs to exactly two faces.

Collapsing edges (decimation) and masks that touch themselves leave a surface without holes, in which each directed edge
still has its opposite, but some edges may carry four faces, and some faces may lie back to back. A reader that counts
faces at each edge then finds it open. Here such places are taken apart.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_PASSES = 100  # each takes at least one such edge from every face that has some; two or three are usual
_APART = 0.02  # how far copies of a vertex move towards their own side, as part of the way to their neighbours


def separated(vertices: NDArray[Any], faces: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the surface with every edge in exactly two faces, and no two vertices where parts only touched.

    Args:
        vertices: (V, 3).
        faces: (F, 3), closed: each directed edge occurs as often as its opposite.

    Returns:
        Vertices and faces. Where parts touch in an edge or a vertex, each gets its own, moved a little towards itself;
        faces that lie back to back are gone.
    """
    faces = _without_folds(np.asarray(faces, dtype=np.int64))
    vertices = np.asarray(vertices, dtype=np.float64)
    if not len(faces):
        return np.zeros((0, 3)), faces
    opposite = _opposites(vertices, faces)
    vertices, faces = _split_vertices(vertices, faces, opposite)
    return _split_edges(vertices, faces)


def is_closed(faces: NDArray[Any]) -> bool:
    """Whether each edge belongs to exactly two faces, which walk it in opposite directions."""
    edges = _half_edges(np.asarray(faces, dtype=np.int64))
    count = int(faces.max()) + 1 if len(faces) else 0
    there, back = edges[:, 0] * count + edges[:, 1], edges[:, 1] * count + edges[:, 0]
    return len(np.unique(there)) == len(there) and np.array_equal(np.sort(there), np.sort(back))


def _half_edges(faces: NDArray[np.int64]) -> NDArray[np.int64]:
    """(3F, 2): the edge from corner c of face f to its next corner stands in row 3f + c."""
    return np.stack([faces, np.roll(faces, -1, axis=1)], axis=2).reshape(-1, 2)


def _without_folds(faces: NDArray[np.int64]) -> NDArray[np.int64]:
    """Drop faces without area (a corner twice) and pairs that lie back to back."""
    a, b, c = faces.T
    faces = faces[(a != b) & (b != c) & (c != a)]
    if not len(faces):
        return faces
    order = np.argsort(faces, axis=1)
    even = (order[:, 0] + 1) % 3 == order[:, 1]
    _, group = np.unique(np.take_along_axis(faces, order, axis=1), axis=0, return_inverse=True)
    group = group.ravel()
    balance = np.bincount(group, weights=np.where(even, 1, -1)).astype(np.int64)
    if (np.abs(balance) == 1).all() and len(balance) == len(faces):
        return faces
    # Of each group keep as many faces of the side that is in surplus as the surplus says.
    wanted = np.where(even, balance[group], -balance[group])
    ranked = np.lexsort((np.arange(len(faces)), ~even, group))
    same = np.r_[False, (np.diff(group[ranked]) == 0) & (np.diff(even[ranked].astype(np.int8)) == 0)]
    start = np.maximum.accumulate(np.where(same, 0, np.arange(len(faces))))
    rank = np.empty(len(faces), dtype=np.int64)
    rank[ranked] = np.arange(len(faces)) - start
    return faces[rank < wanted]


def _opposites(vertices: NDArray[np.float64], faces: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each half-edge the one that it is glued to, so that the solid lies between the two faces."""
    edges = _half_edges(faces)
    count = len(vertices)
    low, high = edges.min(axis=1), edges.max(axis=1)
    forward = edges[:, 0] == low
    order = np.lexsort((~forward, low * count + high))
    key = (low * count + high)[order]
    first = np.flatnonzero(np.r_[True, key[1:] != key[:-1]])
    sizes = np.diff(np.r_[first, len(key)])
    opposite = np.full(len(edges), -1, dtype=np.int64)
    plain = first[sizes == 2]
    opposite[order[plain]], opposite[order[plain + 1]] = order[plain + 1], order[plain]
    for start, size in zip(first[sizes > 2], sizes[sizes > 2], strict=True):
        for one, other in _pairs_around(vertices, faces, edges, order[start : start + size], forward):
            opposite[one], opposite[other] = other, one
    return opposite


def _pairs_around(
    vertices: NDArray[np.float64],
    faces: NDArray[np.int64],
    edges: NDArray[np.int64],
    around: NDArray[np.int64],
    forward: NDArray[np.bool_],
) -> list[tuple[int, int]]:
    """Pair the half-edges of one edge with more than two faces: each pair encloses a wedge of the solid.

    Turning about the edge from its lower to its higher vertex, one enters the solid through a face that walks the edge
    backward and leaves it through one that walks it forward.
    """
    low, high = sorted(edges[around[0]])
    axis = vertices[high] - vertices[low]
    axis = axis / max(float(np.linalg.norm(axis)), 1e-300)
    side = np.cross(axis, np.eye(3)[np.argmin(np.abs(axis))])
    tips = vertices[faces[around // 3, (around + 2) % 3]] - vertices[low]
    angles = np.arctan2(tips @ np.cross(axis, side), tips @ side)
    turn = [int(half) for half in around[np.lexsort((around, forward[around], angles))]]
    pairs: list[tuple[int, int]] = []
    open_: list[int] = []
    for half in turn * 2:  # twice round, so that a wedge across the start of the circle closes too
        if half in (done for pair in pairs for done in pair):
            continue
        if not forward[half] and half not in open_:
            open_.append(half)
        elif forward[half] and open_:
            pairs.append((open_.pop(), half))
    return pairs


def _split_vertices(
    vertices: NDArray[np.float64], faces: NDArray[np.int64], opposite: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Give each fan of faces round a vertex its own copy of it; copies move apart."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    here = np.arange(len(opposite))
    next_corner = here - here % 3 + (here + 1) % 3
    # A half-edge starts at its own corner, and its opposite ends there.
    end_of_opposite = next_corner[opposite]
    size = (len(here),) * 2
    links = coo_matrix((np.ones(len(here), dtype=np.int8), (here, end_of_opposite)), shape=size)
    count, fan = connected_components(links, directed=False)
    old = np.empty(count, dtype=np.int64)
    old[fan] = faces.ravel()
    moved, split = vertices[old], fan.reshape(-1, 3).astype(np.int64)
    copied = np.bincount(old, minlength=len(vertices))[old] > 1
    if copied.any():
        edges = _half_edges(split)
        sums = np.stack([np.bincount(edges[:, 0], moved[edges[:, 1], axis], count) for axis in range(3)], axis=1)
        middles = sums / np.bincount(edges[:, 0], minlength=count)[:, None]
        moved = np.where(copied[:, None], moved + _APART * (middles - moved), moved)
    return moved, split


def _halves(a: int, b: int, middle: int, one: int, other: int) -> list[list[int]]:
    """The four faces that two faces, with the tips `one` and `other`, become when their edge ab gets a vertex."""
    return [[a, middle, one], [middle, b, one], [b, middle, other], [middle, a, other]]


def _split_edges(
    vertices: NDArray[np.float64], faces: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Put a vertex into edges that still carry four faces, because one sheet meets itself in both their ends."""
    for _ in range(_PASSES):
        edges = _half_edges(faces)
        keys = edges[:, 0] * len(vertices) + edges[:, 1]
        _, first, counts = np.unique(keys, return_index=True, return_counts=True)
        if (counts == 1).all():
            return vertices, faces
        opposite = _opposites(vertices, faces)
        touched: set[int] = set()
        points, more = [vertices], [faces]
        number = len(vertices)
        keep = np.ones(len(faces), dtype=bool)
        for half in first[counts > 1]:
            other = int(opposite[half])
            here, there = int(half) // 3, other // 3
            if here in touched or there in touched:
                continue
            touched |= {here, there}
            keep[[here, there]] = False
            tips = [faces[h // 3, (h + 2) % 3] for h in (int(half), other)]
            a, b = edges[half]
            middle = vertices[[a, b]].mean(axis=0)
            points.append((middle + _APART * (vertices[tips].mean(axis=0) - middle))[None])
            more.append(np.array(_halves(a, b, number, *tips)))
            number += 1
        more[0] = faces[keep]
        vertices, faces = np.concatenate(points), np.concatenate(more)
    return vertices, faces
