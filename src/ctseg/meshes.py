"""Surfaces of a label map as STL: closed, outward, in millimetres, in **LPS**.

STL itself names no coordinate system. DICOM's patient coordinates are LPS (x to the patient's left, y to the back, z
to the head), and 3D Slicer takes an STL as LPS unless told otherwise, so LPS it is; the file's header says so in the
words that Slicer reads (`SPACE=LPS`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg.files import mesh_name, written_beside
from ctseg.volume import Volume

HEADER = b"ctseg; SPACE=LPS; UNIT=mm"
_LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_SMOOTHING_STEPS = 10
_FINE_ENOUGH_MM, _LARGE = 1.5, 50_000  # see _blocks
_LEVEL = 0.499  # not 0.5, which blocks half full have exactly: their vertices would fall together and open the surface
_TRIANGLE = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])


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


def _smoothed(vertices: NDArray[Any], faces: NDArray[Any]) -> NDArray[Any]:
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
    return np.asarray(mesh.vertices)


def _signed_volume(vertices: NDArray[Any], faces: NDArray[Any]) -> float:
    """Volume of a closed surface; negative when its faces look inwards. Unit: that of the vertices, cubed."""
    a, b, c = (vertices[faces[:, corner]] for corner in range(3))
    return float(np.einsum("ij,ij->i", a, np.cross(b, c)).sum() / 6.0)


def surface_of_label(
    label_map: NDArray[Any], affine: NDArray[Any], code: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]] | None:
    """Return the closed surface of one label.

    Args:
        label_map: (I, J, K) integers.
        affine: (4, 4), voxel index to RAS millimetres, as the source states it (the mask lies on the source's grid).
        code: the label's value.

    Returns:
        Vertices (V, 3) in LPS millimetres and faces (F, 3), counter-clockwise seen from outside; None when the label
        is not in the map.
    """
    from skimage.measure import marching_cubes

    found = label_map == code
    hits = [np.flatnonzero(found.any(axis=tuple(other for other in range(3) if other != axis))) for axis in range(3)]
    if not hits[0].size:
        return None
    first = np.array([hit[0] for hit in hits])
    organ = found[tuple(slice(int(hit[0]), int(hit[-1]) + 1) for hit in hits)]
    blocks = _blocks(int(np.count_nonzero(organ)), affine)
    cells, faces, _, _ = marching_cubes(_occupancy(organ, blocks), level=_LEVEL, allow_degenerate=False)
    # Cell 0 is the rim: the blocks before the organ's first voxel. A cell's place is the middle of its voxels.
    voxels = cells.astype(np.float64) * blocks + (blocks - 1) / 2 - blocks + first
    to_lps = _LPS_FROM_RAS @ np.asarray(affine, dtype=np.float64)
    vertices = voxels @ to_lps[:3, :3].T + to_lps[:3, 3]
    vertices = _smoothed(vertices, faces)
    if _signed_volume(vertices - vertices.mean(axis=0), faces) < 0:  # a mirroring affine turns every face inwards
        faces = faces[:, ::-1]
    return vertices, faces.astype(np.int64)


def stl_bytes(vertices: NDArray[Any], faces: NDArray[Any]) -> bytes:
    """Return a binary STL: header of 80 bytes, number of triangles, then normal and corners of each as float32."""
    triangles = np.zeros(len(faces), dtype=_TRIANGLE)
    corners = vertices[faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    triangles["normal"] = np.divide(normals, lengths, out=np.zeros_like(normals), where=lengths > 0)
    triangles["corners"] = corners
    return HEADER.ljust(80) + np.uint32(len(faces)).astype("<u4").tobytes() + triangles.tobytes()


def write_stl(label_map: NDArray[Any], affine: NDArray[Any], code: int, path: Path) -> Path | None:
    """Write the surface of one label as binary STL in LPS millimetres; the same input gives the same bytes.

    Args:
        label_map: (I, J, K) integers.
        affine: (4, 4), voxel index to RAS millimetres, as the source states it.
        code: the label's value.
        path: where to, written beside and renamed.

    Returns:
        `path`, or None (and nothing written) when the label is not in the map.

    Raises:
        OutputError: the file cannot be written.
    """
    surface = surface_of_label(label_map, affine, code)
    if surface is None:
        return None
    with written_beside(path) as beside:
        beside.write_bytes(stl_bytes(*surface))
    return path


def write_meshes(volume: Volume, label_map: NDArray[Any], labels: Mapping[str, int], folder: Path) -> list[Path]:
    """Write `<label>.stl` for each label that is found (see `write_stl`), and return the files written.

    Raises:
        OutputError: a file cannot be written.
    """
    files = [
        write_stl(label_map, volume.source_affine, code, folder / mesh_name(name)) for name, code in labels.items()
    ]
    return [file for file in files if file is not None]
