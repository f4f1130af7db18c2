"""Surfaces: volume, place, side and closedness, against formulae and against what trimesh reads back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trimesh

from ctseg.errors import OutputError
from ctseg.files import mesh_name
from ctseg.outputs.meshes import write_meshes
from ctseg.outputs.surfaces import surface_of_label
from ctseg.volume import Volume

OBLIQUE = np.array([[0.9, -0.3, 0.1, -20.0], [0.35, 1.1, -0.2, 15.0], [-0.1, 0.25, 2.4, 40.0], [0.0, 0.0, 0.0, 1.0]])


def write_stl(label_map: np.ndarray, affine: np.ndarray, code: int, path: Path) -> Path:
    volume = Volume(label_map, affine, affine, path, "nifti")
    (file,) = write_meshes(volume, label_map, {path.stem: code}, path.parent)
    assert file == path
    return file


def _sphere(size: int, radius: float, spacing: tuple[float, float, float]) -> np.ndarray:
    grid = np.stack(np.meshgrid(*[np.arange(size) - size // 2] * 3, indexing="ij"), axis=-1) * np.array(spacing)
    return ((grid**2).sum(axis=-1) <= radius**2).astype(np.uint8)


@pytest.mark.parametrize("mirror", [1.0, -1.0])
def test_a_sphere_keeps_its_volume_radius_and_centre(tmp_path: Path, mirror: float) -> None:
    affine = np.diag([1.0 * mirror, 1.0, 1.25, 1.0])
    affine[:3, 3] = (7.0, -11.0, 30.0)
    label_map = _sphere(49, 20.0, (1.0, 1.0, 1.25))
    file = write_stl(label_map, affine, 1, tmp_path / "ball.stl")
    mesh = trimesh.load_mesh(file)
    assert mesh.is_watertight and mesh.is_winding_consistent
    assert mesh.volume == pytest.approx(label_map.sum() * 1.25, rel=0.02)  # positive: normals look outwards
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * 20.0**3, rel=0.03)
    centre_ras = affine @ [24, 24, 24, 1]
    np.testing.assert_allclose(mesh.center_mass, centre_ras[:3] * [-1, -1, 1], atol=0.02)
    radii = np.linalg.norm(mesh.vertices - mesh.center_mass, axis=1)
    assert radii.min() > 19.0 and radii.max() < 20.9
    outwards = np.einsum("ij,ij->i", mesh.face_normals, mesh.triangles_center - mesh.center_mass)
    assert (outwards > 0).all()


def test_an_asymmetric_body_lies_where_the_oblique_affine_says_in_lps(tmp_path: Path) -> None:
    label_map = np.zeros((24, 20, 12), np.uint8)
    label_map[3:20, 4:8, 2:9] = 7  # an L: no flip maps it on itself
    label_map[3:7, 4:16, 2:6] = 7
    mesh = trimesh.load_mesh(write_stl(label_map, OBLIQUE, 7, tmp_path / "l.stl"))
    centre = np.append(np.argwhere(label_map == 7).mean(axis=0), 1.0)
    np.testing.assert_allclose(mesh.center_mass, (np.diag([-1, -1, 1, 1]) @ OBLIQUE @ centre)[:3], atol=0.1)
    voxel = abs(np.linalg.det(OBLIQUE[:3, :3]))
    assert mesh.volume == pytest.approx((label_map == 7).sum() * voxel, rel=0.02)
    back = (np.linalg.inv(np.diag([-1, -1, 1, 1]) @ OBLIQUE) @ np.c_[mesh.vertices, np.ones(len(mesh.vertices))].T).T
    np.testing.assert_allclose(back[:, :3].min(axis=0), [2.5, 3.5, 1.5], atol=0.2)
    np.testing.assert_allclose(back[:, :3].max(axis=0), [19.5, 15.5, 8.5], atol=0.2)


def test_a_large_organ_on_a_fine_grid_keeps_volume_and_place_with_fewer_triangles(tmp_path: Path) -> None:
    spacing = (0.5, 0.7, 2.0)  # blocks of 3 x 2 x 1 voxels
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in (101, 80, 31)], indexing="ij"), axis=-1) * np.array(spacing)
    centre = np.array([24.7, 28.1, 30.3])
    label_map = (((grid - centre) ** 2).sum(axis=-1) <= 22.0**2).astype(np.uint8)
    assert label_map.sum() > 50_000
    mesh = trimesh.load_mesh(write_stl(label_map, np.diag([*spacing, 1.0]), 1, tmp_path / "ball.stl"))
    assert mesh.is_watertight and mesh.is_winding_consistent
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * 22.0**3, rel=0.02)
    np.testing.assert_allclose(mesh.center_mass, centre * [-1, -1, 1], atol=0.1)
    assert len(mesh.faces) < 4 * np.pi * 22.0**2 / (1.4 * 1.5) * 4  # and not some 20 for each square mm


def test_half_full_blocks_are_closed() -> None:
    ball = np.linalg.norm(np.indices((62, 62, 62)) - 30.0, axis=0) < 26.0
    ball[20:40, ::7, 5:20] = False  # clefts of one voxel
    vertices, faces = surface_of_label(ball.astype(np.uint8), np.diag([0.7, 0.7, 2.0, 1.0]), 1)
    mesh = trimesh.Trimesh(vertices, faces, process=False)  # as it is, without vertices that fall together being merged
    assert mesh.is_watertight and mesh.is_winding_consistent
    assert mesh.volume == pytest.approx(ball.sum() * 0.98, rel=0.02)


@pytest.mark.parametrize("seed", [0, 1])
def test_noise_at_the_edge_of_the_grid_is_closed_too(tmp_path: Path, seed: int) -> None:
    noise = (np.random.default_rng(seed).random((9, 8, 7)) < 0.5).astype(np.uint8)
    mesh = trimesh.load_mesh(write_stl(noise, np.eye(4), 1, tmp_path / "noise.stl"), process=False)
    corners = np.ascontiguousarray(mesh.vertices).view("f8,f8,f8").ravel()
    _, index = np.unique(corners, return_inverse=True)
    edges = index[mesh.faces][:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2)
    there, back = {tuple(edge) for edge in edges}, {tuple(edge) for edge in edges[:, ::-1]}
    assert there == back  # each edge is walked both ways: no hole


def test_one_voxel_and_one_slice_are_closed(tmp_path: Path) -> None:
    single = np.zeros((5, 4, 1), np.uint8)
    single[4, 3, 0] = 2
    mesh = trimesh.load_mesh(write_stl(single, np.eye(4), 2, tmp_path / "voxel.stl"))
    assert mesh.is_watertight and mesh.volume > 0


def test_bytes_repeat_and_the_header_names_the_space(tmp_path: Path) -> None:
    label_map = _sphere(15, 5.0, (1.0, 1.0, 1.0))
    first = write_stl(label_map, OBLIQUE, 1, tmp_path / "a.stl").read_bytes()
    assert first == write_stl(label_map, OBLIQUE, 1, tmp_path / "b.stl").read_bytes()
    assert b"SPACE=LPS" in first[:80] and not first.startswith(b"solid")
    assert len(first) == 84 + 50 * int.from_bytes(first[80:84], "little")


def test_a_label_that_is_not_there_writes_nothing(tmp_path: Path) -> None:
    label_map = _sphere(15, 5.0, (1.0, 1.0, 1.0))
    volume = Volume(label_map, np.eye(4), np.eye(4), tmp_path / "ct.nii", "nifti")
    files = write_meshes(volume, label_map, {"spleen": 2, "left kidney/upper": 1}, tmp_path)
    assert [file.name for file in files] == ["left_kidney_upper.stl"] == [p.name for p in tmp_path.iterdir()]
    assert mesh_name("../x") == "___x.stl"


def test_a_place_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"file"):
        write_stl(_sphere(15, 5.0, (1.0, 1.0, 1.0)), np.eye(4), 1, tmp_path / "file" / "x.stl")
