"""From a label map to a closed surface: marching cubes, smoothing, fewer faces, and the mask's own volume again.

Coordinates are millimetres in LPS (x to the patient's left, y to the back, z to the head), right-handed; faces look
outwards, counter-clockwise seen from outside.
"""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ctseg.errors import ConfigError
from ctseg.organs import extent_of
from ctseg.outputs.manifolds import separated

_LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_SMOOTHING_STEPS = 20
_FINE_ENOUGH_MM, _LARGE = 1.5, 50_000  # see _blocks
_LEVEL = 0.499  # not 0.5, which blocks half full have exactly: their vertices would fall together and open the surface
_ROUNDS, _CLOSE = 8, 0.97  # see _decimated
_SIMPLIFY_LOCK = threading.Lock()  # fast_simplification works on one mesh in static memory


class Surface(NamedTuple):
    """A closed surface: vertices (V, 3) in LPS millimetres, faces (F, 3) counter-clockwise seen from outside."""

    vertices: NDArray[np.float64]
    faces: NDArray[np.int64]


def surface_of_label(
    label_map: NDArray[Any], affine: NDArray[Any], code: int, faces: int | None = None
) -> Surface | None:
    """Return the closed surface of one label, smoothed, with the volume of the label's voxels.

    Args:
        label_map: (I, J, K) integers.
        affine: (4, 4), voxel index to RAS millimetres, as the source states it (the mask lies on the source's grid).
        code: the label's value.
        faces: at most so many faces, by quadric decimation (Garland and Heckbert, SIGGRAPH 1997); None keeps all.
            A shape of many small pieces may keep somewhat more: each piece needs a few.

    Returns:
        The surface; each edge belongs to exactly two faces. None when the label is not in the map.

    Raises:
        ConfigError: for fewer faces than 4.
    """
    if faces is not None and faces < 4:
        raise ConfigError(f"{faces} faces were asked for: nothing closed has fewer than 4; name more faces")
    _, box = extent_of(label_map, code)
    if box is None:
        return None
    first = np.array([low for low, _ in box])
    organ = label_map[tuple(slice(low, high + 1) for low, high in box)] == code
    to_lps = _LPS_FROM_RAS @ np.asarray(affine, dtype=np.float64)
    vertices, triangles = _marched(organ, first, to_lps)
    centre = vertices.mean(axis=0)  # small numbers keep more digits
    vertices = vertices - centre
    if signed_volume(vertices, triangles) < 0:  # half of all affines mirror, which turns every face inwards
        triangles = triangles[:, ::-1]
    vertices = _smoothed(vertices, triangles)
    vertices, triangles = _decimated(vertices, triangles, faces)
    voxel = abs(float(np.linalg.det(to_lps[:3, :3])))
    vertices = _with_volume(vertices, triangles, np.count_nonzero(organ) * voxel)
    return Surface(vertices + centre, triangles)


def signed_volume(vertices: NDArray[Any], faces: NDArray[Any]) -> float:
    """Volume of a closed surface; negative when its faces look inwards. Unit: that of the vertices, cubed."""
    a, b, c = (vertices[faces[:, corner]] for corner in range(3))
    return float(np.einsum("ij,ij->i", a, np.cross(b, c)).sum() / 6.0)


def vertex_normals(vertices: NDArray[Any], faces: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return outward unit normals (V, 3) and the area (V,) that each stands for: a third of its faces', as vectors."""
    corners = vertices[faces]
    areas = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]) / 6.0
    count = len(vertices)
    flat = faces.ravel()
    sums = np.stack([np.bincount(flat, np.repeat(areas[:, axis], 3), count) for axis in range(3)], axis=1)
    lengths = np.linalg.norm(sums, axis=1)
    normals = np.divide(sums, lengths[:, None], out=np.tile([0.0, 0.0, 1.0], (count, 1)), where=lengths[:, None] > 0)
    return normals, lengths


def _blocks(voxels: int, affine: NDArray[Any]) -> NDArray[np.int64]:
    """How many voxels along each axis make one cell of the surface's grid.

    A large organ (in voxels) on a fine grid is averaged in blocks of at most 1.5 mm first: its surface keeps its place
    and volume, and has a quarter of the triangles, which viewers thank for. A small one keeps every voxel.
    """
    if voxels < _LARGE:
        return np.ones(3, dtype=np.int64)
    spacing = np.sqrt((np.asarray(affine, dtype=np.float64)[:3, :3] ** 2).sum(axis=0))
    return np.maximum(1, np.floor(_FINE_ENOUGH_MM / spacing)).astype(np.int64)


def _occupancy(found: NDArray[np.bool_], blocks: NDArray[np.int64]) -> NDArray[np.float32]:
    """Part of each block that is organ, 0..1, with at least one empty block all round, which closes the surface."""
    i, j, k = (int(n) for n in blocks)
    rims = [(n, n + -size % n) for size, n in zip(found.shape, (i, j, k), strict=True)]
    padded = np.pad(found, rims)
    a, b, c = (size // n for size, n in zip(padded.shape, (i, j, k), strict=True))
    return np.asarray(padded.reshape(a, i, b, j, c, k).mean(axis=(1, 3, 5), dtype=np.float32))


def _marched(
    organ: NDArray[np.bool_], first: NDArray[np.int64], to_lps: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The surface with the voxels' steps, in LPS mm; `first` is the index of the organ's box in the label map."""
    from skimage.measure import marching_cubes

    blocks = _blocks(int(np.count_nonzero(organ)), to_lps)
    occupancy = _occupancy(organ, blocks)
    if occupancy.max() <= _LEVEL:  # all of it thinner than a block: keep every voxel
        blocks = np.ones(3, dtype=np.int64)
        occupancy = _occupancy(organ, blocks)
    cells, faces, _, _ = marching_cubes(occupancy, level=_LEVEL, allow_degenerate=False)
    # Cell 0 is the rim: the blocks before the organ's first voxel. A cell's place is the middle of its voxels.
    voxels = cells.astype(np.float64) * blocks + (blocks - 1) / 2 - blocks + first
    return voxels @ to_lps[:3, :3].T + to_lps[:3, 3], faces.astype(np.int64)


def _smoothed(vertices: NDArray[Any], faces: NDArray[Any]) -> NDArray[np.float64]:
    """Take the voxels' steps off a closed surface without shrinking it (Taubin, SIGGRAPH 1995)."""
    import trimesh
    from scipy.sparse import coo_matrix, diags

    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])  # closed: both ways are in it
    ones = np.ones(len(edges))
    neighbours = coo_matrix((ones, (edges[:, 0], edges[:, 1])), shape=(len(vertices),) * 2).tocsr()
    mean_of_neighbours = diags(1.0 / np.asarray(neighbours.sum(axis=1)).ravel()) @ neighbours
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    # The operator is handed over because trimesh builds its own by walking a graph vertex by vertex: many seconds.
    trimesh.smoothing.filter_taubin(
        mesh, lamb=0.5, nu=0.53, iterations=_SMOOTHING_STEPS, laplacian_operator=mean_of_neighbours.tocoo()
    )
    return np.asarray(mesh.vertices, dtype=np.float64)


def _decimated(
    vertices: NDArray[np.float64], faces: NDArray[np.int64], wanted: int | None
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Collapse edges until `wanted` faces are left, and take apart what touches then.

    Taking apart removes or adds some faces, so a few rounds are needed; the one that comes closest is taken.
    """
    whole = source = best = separated(vertices, faces)
    goal = wanted or 0
    if wanted is None or len(whole[1]) <= wanted:
        return whole
    for _ in range(_ROUNDS):
        result = separated(*_collapsed(*source, min(goal, len(source[1]))))
        count = len(result[1])
        if count and _distance(count, wanted) < _distance(len(best[1]), wanted):
            best = result
        if count > wanted:  # go on from here
            source, goal = result, max(4, 2 * wanted - count)
        elif count < _CLOSE * wanted:  # too many lay back to back and vanished
            source, goal = whole, min(len(whole[1]), goal * wanted // max(count, 1))
        else:
            break
    return best


def _distance(count: int, wanted: int) -> tuple[int, int]:
    """How far a number of faces is from the wanted one: half of it and more is near, above it far, few worst."""
    return 1 if count > wanted else 2 if 2 * count < wanted else 0, abs(count - wanted)


def _collapsed(
    vertices: NDArray[np.float64], faces: NDArray[np.int64], goal: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    import fast_simplification

    with _SIMPLIFY_LOCK:
        points, triangles = fast_simplification.simplify(vertices, faces.astype(np.int32), target_count=goal)
    return np.asarray(points, dtype=np.float64), np.asarray(triangles, dtype=np.int64)


def _with_volume(vertices: NDArray[np.float64], faces: NDArray[np.int64], volume: float) -> NDArray[np.float64]:
    """Move the surface along its normals, everywhere alike, until it encloses `volume`: some hundredths of a mm.

    Corners cut by marching cubes and chords across hollows cost thin structures several per cent of their volume.
    """
    for _ in range(20):
        missing = volume - signed_volume(vertices, faces)
        if abs(missing) <= 1e-4 * volume:
            break
        normals, areas = vertex_normals(vertices, faces)
        vertices = vertices + missing / max(float(areas.sum()), 1e-12) * normals
    return vertices
