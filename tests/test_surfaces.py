"""Surface models in all formats: known bodies under many affines, decimated, read back by readers that are not ours."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from helpers_phantoms import oblique_affine, reoriented, straight_affine

from ctseg.errors import ConfigError
from ctseg.outputs.manifolds import is_closed, separated
from ctseg.outputs.meshes import write_meshes
from ctseg.outputs.meshfiles import GLTF_FROM_LPS, glb_bytes
from ctseg.outputs.surfaces import Surface, signed_volume, surface_of_label
from ctseg.volume import Volume

SPACING = (1.4, 1.0, 2.0)
# Blocks of a body in RAS mm, (from, to) for x, y, z. Nothing maps it on itself: the arm goes to the patient's left, the
# nose to the front, the hat is up and to the right.
TRUNK = ((-20.0, 20.0), (-15.0, 15.0), (-30.0, 30.0))
ARM = ((-38.0, -20.0), (-6.0, 6.0), (0.0, 12.0))
NOSE = ((-5.0, 5.0), (15.0, 27.0), (10.0, 20.0))
HAT = ((2.0, 18.0), (-10.0, 6.0), (30.0, 44.0))
CENTRE = np.array([12.0, -34.0, 250.0])  # of the trunk, in the scanner
BODY_RAS = np.array([[-38.0, 20.0], [-15.0, 27.0], [-30.0, 44.0]]) + CENTRE[:, None]
BODY_LPS = np.array([[-32.0, 26.0], [7.0, 49.0], [220.0, 294.0]])  # worked out by hand from BODY_RAS
BODY_GLTF = np.array([[-0.032, 0.026], [0.220, 0.294], [-0.049, -0.007]])


def body(affine: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """The body on any grid, voxel by voxel from its description in millimetres."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    place = index @ affine[:3, :3].T + affine[:3, 3] - CENTRE
    found = np.zeros(shape, bool)
    for block in (TRUNK, ARM, NOSE, HAT):
        found |= np.logical_and.reduce(
            [(lo <= place[..., a]) & (place[..., a] < hi) for a, (lo, hi) in enumerate(block)]
        )
    return found.astype(np.uint8)


def _grids() -> dict[str, tuple[np.ndarray, tuple[int, int, int]]]:
    straight = straight_affine(SPACING, CENTRE - [48, 30, 45])
    shape = (60, 70, 52)
    grids = {"RAS": (straight, shape)}
    for code in ("LPS", "PSR", "LAS"):
        stored, affine = reoriented(np.zeros(shape), straight, code)
        grids[code] = (affine, stored.shape)
    turned = oblique_affine(SPACING, (0, 0, 0), (12, -7, 21))
    size = np.array([76, 82, 62])
    turned[:3, 3] = CENTRE - turned[:3, :3] @ (size / 2)
    grids["oblique"] = (turned, tuple(size))
    return grids


GRIDS = _grids()


@pytest.fixture(params=sorted(GRIDS))
def grid(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray]:
    affine, shape = GRIDS[request.param]
    return body(affine, shape), affine


def read_glb(content: bytes) -> dict[str, tuple[np.ndarray, np.ndarray, dict[str, Any]]]:
    """Read a GLB by the letter of the glTF 2.0 specification: name -> vertices, faces, material."""
    magic, version, length = struct.unpack_from("<4sII", content)
    assert (magic, version, length) == (b"glTF", 2, len(content))
    size, kind = struct.unpack_from("<I4s", content, 12)
    assert kind == b"JSON" and size % 4 == 0
    scene = json.loads(content[20 : 20 + size])
    binary_size, kind = struct.unpack_from("<I4s", content, 20 + size)
    assert kind == b"BIN\0" and 28 + size + binary_size == len(content)
    binary = content[28 + size :]

    def values(number: int) -> np.ndarray:
        accessor = scene["accessors"][number]
        view = scene["bufferViews"][accessor["bufferView"]]
        dtype = {5126: "<f4", 5125: "<u4"}[accessor["componentType"]]
        array = np.frombuffer(binary, dtype, offset=view["byteOffset"], count=view["byteLength"] // 4)
        return array.reshape(accessor["count"], -1)

    found = {}
    for node in (scene["nodes"][n] for n in scene["scenes"][scene["scene"]]["nodes"]):
        assert not {"matrix", "translation", "rotation", "scale"} & set(node)
        (part,) = scene["meshes"][node["mesh"]]["primitives"]
        places = values(part["attributes"]["POSITION"])
        normals = values(part["attributes"]["NORMAL"])
        np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-5)
        faces = values(part["indices"]).reshape(-1, 3)
        found[node["name"]] = (places, faces, scene["materials"][part["material"]])
    return found


def write(label_map: np.ndarray, affine: np.ndarray, folder: Path, **options: Any) -> dict[str, Path]:
    volume = Volume(label_map, affine, affine, folder, "nifti")
    labels = options.pop("labels", {"body": 1})
    files = write_meshes(volume, label_map, labels, folder, kinds=("stl", "obj", "glb"), **options)
    return {file.name: file for file in files}


@pytest.mark.parametrize("faces", [None, 3000])
def test_a_known_body_is_whole_and_in_place_in_every_format(
    grid: tuple[np.ndarray, np.ndarray], faces: int | None, tmp_path: Path
) -> None:
    label_map, affine = grid
    files = write(label_map, affine, tmp_path, faces=faces)
    assert list(files) == ["body.stl", "body.obj", "body.glb"]
    mm3 = label_map.sum() * abs(np.linalg.det(affine[:3, :3]))
    assert mm3 == pytest.approx(72000 + 2592 + 1200 + 3584, rel=0.05)  # the blocks' own volumes
    voxel = np.abs(affine[:3, :3]).sum(axis=1).max()
    for name, scale, bounds in (
        ("body.stl", 1.0, BODY_LPS),
        ("body.obj", 1.0, BODY_LPS),
        ("body.glb", 1000.0, BODY_GLTF),
    ):
        mesh = trimesh.load(files[name], force="mesh")
        assert mesh.is_watertight and mesh.is_winding_consistent, name
        assert mesh.volume * scale**3 == pytest.approx(mm3, rel=0.02), name  # and above 0: faces look outwards
        np.testing.assert_allclose(mesh.bounds.T * scale, bounds * scale, atol=voxel, err_msg=name)
        if faces:
            assert 0.97 * faces <= len(mesh.faces) <= faces, name


def test_in_glb_the_head_is_up_the_patient_faces_the_viewer_and_is_life_size(tmp_path: Path) -> None:
    affine, shape = GRIDS["LPS"]
    file = write(body(affine, shape), affine, tmp_path)["body.glb"]
    ((places, _, _),) = read_glb(file.read_bytes()).values()
    middle = np.array([-0.012, 0.250, -0.034])  # of the trunk: x = left, y = up, z = front
    assert np.ptp(places[:, 1]) == pytest.approx(0.074, abs=0.002)  # 74 mm tall in metres
    arm = places[np.argmax(places[:, 0])] - middle
    nose = places[np.argmax(places[:, 2])] - middle
    hat = places[np.argmax(places[:, 1])] - middle
    assert arm[0] == pytest.approx(0.038, abs=0.001) and 0 < arm[1] < 0.013  # the patient's left arm at +x
    assert nose[2] == pytest.approx(0.027, abs=0.001) and 0.009 < nose[1] < 0.021
    assert hat[1] == pytest.approx(0.044, abs=0.001) and -0.019 < hat[0] < -0.001  # on the patient's right
    assert np.linalg.det(GLTF_FROM_LPS) == pytest.approx(1)  # no mirror


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 0.7, 2.5), (-0.9, 0.9, 1.5)])
@pytest.mark.parametrize("faces", [None, 4000, 500])
def test_a_sphere_keeps_volume_and_radius_at_every_number_of_faces(
    spacing: tuple[float, float, float], faces: int | None
) -> None:
    shape = tuple(int(46 / abs(mm)) + 3 for mm in spacing)
    affine = np.diag([*spacing, 1.0])
    centre = np.array(shape) // 2
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1) - centre
    label_map = (np.linalg.norm(index * np.array(spacing), axis=-1) <= 20.0).astype(np.uint8)
    surface = surface_of_label(label_map, affine, 1, faces)
    assert is_closed(surface.faces)
    voxels = label_map.sum() * abs(np.prod(spacing))
    assert signed_volume(*surface) == pytest.approx(voxels, rel=0.001)
    assert signed_volume(*surface) == pytest.approx(4 / 3 * np.pi * 8000, rel=0.02)
    radii = np.linalg.norm(surface.vertices - (centre * spacing * np.array([-1, -1, 1])), axis=1)
    assert radii.min() > 20 - 1.6 and radii.max() < 20 + 1.6
    assert radii.mean() == pytest.approx(20, abs=0.3)
    if faces:
        assert 0.97 * faces <= len(surface.faces) <= faces


@pytest.mark.parametrize("faces", [None, 2000, 400])
def test_torn_and_touching_masks_stay_closed_for_readers_that_count(faces: int | None, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    foam = (rng.random((24, 22, 20)) < 0.35).astype(np.uint8)
    foam[4:20, 4:18, 4:16] |= (rng.random((16, 14, 12)) < 0.7).astype(np.uint8)
    files = write(foam, oblique_affine(), tmp_path, faces=faces)
    for name in ("body.obj", "body.glb"):
        mesh = trimesh.load(files[name], force="mesh")
        assert mesh.is_watertight and mesh.is_winding_consistent and mesh.volume > 0, name
    if faces == 2000:
        assert len(mesh.faces) <= 2000


def test_bodies_that_touch_are_taken_apart() -> None:
    cube = trimesh.creation.box(bounds=[[0, 0, 0], [1, 1, 1]])
    second = trimesh.creation.box(bounds=[[1, 1, 0], [2, 2, 1]])  # shares an edge with the first
    third = trimesh.creation.box(bounds=[[-1, -1, -1], [0, 0, 0]])  # shares a corner
    joined = trimesh.util.concatenate([cube, second, third])
    joined.merge_vertices()
    assert len(joined.vertices) == 24 - 3 and not is_closed(joined.faces)
    vertices, faces = separated(joined.vertices, joined.faces)
    assert is_closed(faces) and len(vertices) == 24 and len(faces) == 36
    assert signed_volume(vertices, faces) == pytest.approx(3, rel=0.02)
    parts = trimesh.Trimesh(vertices, faces).split()  # vertices of one place would be merged here
    assert sorted(round(part.volume, 1) for part in parts) == [1.0, 1.0, 1.0]


def test_faces_back_to_back_and_without_area_go() -> None:
    cube = trimesh.creation.box()
    fin = np.array([[0, 1, 8], [1, 0, 8], [2, 2, 3]])
    vertices, faces = separated(np.vstack([cube.vertices, [[3, 3, 3]]]), np.vstack([cube.faces, fin]))
    assert len(faces) == 12 and len(vertices) == 8 and is_closed(faces)


def test_an_edge_with_four_faces_of_one_sheet_gets_a_vertex() -> None:
    """A ring of four tetrahedron-like wedges whose ends meet in one edge: both its ends are single vertices."""
    ball = trimesh.creation.icosphere(subdivisions=2)
    top, bottom = np.argmax(ball.vertices[:, 2]), np.argmin(ball.vertices[:, 2])
    faces = np.where(ball.faces == bottom, top, ball.faces)  # two poles become one vertex: a pinched sphere
    vertices, apart = separated(ball.vertices, faces)
    assert is_closed(apart) and len(vertices) == len(ball.vertices)


def test_colours_names_and_the_scene_of_all_organs(tmp_path: Path) -> None:
    label_map = np.zeros((20, 20, 20), np.uint8)
    label_map[2:8, 2:8, 2:8], label_map[10:18, 10:18, 10:18] = 1, 2
    labels = {"left kidney": 1, "liver": 2, "spleen": 3}
    files = write(label_map, np.eye(4), tmp_path, labels=labels, colors={"liver": (188, 0, 255)})
    assert list(files) == [
        "left_kidney.stl", "liver.stl", "left_kidney.obj", "liver.obj", "left_kidney.glb", "liver.glb", "organs.glb",
    ]  # fmt: skip
    assert sorted(files) == sorted(path.name for path in tmp_path.iterdir())
    scene = read_glb(files["organs.glb"].read_bytes())
    assert list(scene) == ["left kidney", "liver"]
    color = scene["liver"][2]["pbrMetallicRoughness"]["baseColorFactor"]
    # IEC 61966-2-1: ((188/255 + 0.055) / 1.055) ** 2.4 = 0.5029
    assert color == [pytest.approx(0.5029, abs=1e-4), 0.0, 1.0, 1.0]
    alone = read_glb(files["liver.glb"].read_bytes())["liver"]
    np.testing.assert_array_equal(scene["liver"][0], alone[0])  # the files of several organs fit together
    first = files["liver.obj"].read_text().splitlines()
    assert first[:2] == ["# ctseg; SPACE=LPS; UNIT=mm", "o liver"]


def test_the_same_bytes_each_time(tmp_path: Path) -> None:
    affine, shape = GRIDS["oblique"]
    runs = [write(body(affine, shape), affine, tmp_path / run, faces=1500) for run in ("a", "b")]
    for name, file in runs[0].items():
        assert file.read_bytes() == runs[1][name].read_bytes(), name


def test_too_few_faces_are_refused() -> None:
    with pytest.raises(ConfigError, match="fewer than 4"):
        surface_of_label(np.ones((3, 3, 3), np.uint8), np.eye(4), 1, 3)


def test_admesh_finds_nothing_to_mend(tmp_path: Path) -> None:
    if shutil.which("admesh") is None:
        pytest.skip("admesh is not installed (apt-get install admesh)")
    affine, shape = GRIDS["oblique"]
    label_map = body(affine, shape)
    file = write(label_map, affine, tmp_path, faces=2000)["body.stl"]
    said = subprocess.run(["admesh", str(file)], capture_output=True, text=True, check=True, timeout=60).stdout
    counts = {name.strip(): float(value) for name, value in re.findall(r"([A-Z][a-z ]+\w)\s*:\s+(\d[\d.]*)", said)}
    assert counts["Total disconnected facets"] == counts["Degenerate facets"] == counts["Facets removed"] == 0
    assert counts["Facets reversed"] == counts["Backwards edges"] == counts["Normals fixed"] == 0
    assert counts["Volume"] == pytest.approx(label_map.sum() * abs(np.linalg.det(affine[:3, :3])), rel=0.02)


_VALIDATE = """
const validator = require('gltf-validator');
validator.validateBytes(new Uint8Array(require('fs').readFileSync(process.argv[1])))
  .then(report => console.log(JSON.stringify(report)));
"""


def test_the_khronos_validator_has_nothing_to_say(tmp_path: Path) -> None:
    node = shutil.which("node")
    found = node and subprocess.run([node, "-e", "require.resolve('gltf-validator')"], capture_output=True, check=False)
    if not found or found.returncode:
        pytest.skip("gltf-validator is not there (npm install gltf-validator, and NODE_PATH=.../node_modules)")
    label_map = body(*GRIDS["RAS"])
    label_map[:10, :10, :10] = 2
    file = write(label_map, GRIDS["RAS"][0], tmp_path, labels={"body": 1, "block": 2}, faces=2000)["organs.glb"]
    done = subprocess.run([node, "-e", _VALIDATE, str(file)], capture_output=True, text=True, check=True, timeout=60)
    report = json.loads(done.stdout)
    assert report["issues"]["messages"] == []
    assert report["info"]["version"] == "2.0" and report["info"]["materialCount"] == 2


def test_a_scene_without_a_colour_is_grey() -> None:
    cube = trimesh.creation.box()
    ((_, _, material),) = read_glb(glb_bytes({"x": Surface(cube.vertices, cube.faces)}, {})).values()
    assert len(set(material["pbrMetallicRoughness"]["baseColorFactor"][:3])) == 1
