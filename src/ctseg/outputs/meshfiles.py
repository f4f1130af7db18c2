"""Surfaces as files: STL and OBJ in millimetres in **LPS**, GLB (glTF 2.0) in metres, +Y up.

STL and OBJ name no coordinate system. DICOM's patient coordinates are LPS (x to the patient's left, y to the back, z to
the head), and 3D Slicer takes both as LPS unless told otherwise, so LPS it is; an STL's header and an OBJ's first line
say so in the words that Slicer reads (`SPACE=LPS`).

glTF 2.0 (section 3.4) is right-handed, in metres, with +Y up, and the front of a model looks to +Z. So the patient's
head is up (+Y), the patient faces +Z, towards the viewer, and +X is the patient's left: x = L, y = S, z = A. This is
LPS turned by 90 degrees about x; nothing is mirrored, and the origin stays that of the scanner, so that files of
several organs fit together.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg import __version__
from ctseg.outputs.surfaces import Surface, vertex_normals

STL_HEADER = b"ctseg; SPACE=LPS; UNIT=mm"
GLTF_FROM_LPS = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])  # a rotation: its determinant is +1
METRES = 0.001
DEFAULT_COLOR = (200, 200, 200)
_TRIANGLE = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
_FLOAT, _UINT32, _VERTICES, _INDICES = 5126, 5125, 34962, 34963  # glTF's numbers for types and buffers


def stl_bytes(vertices: NDArray[Any], faces: NDArray[Any]) -> bytes:
    """Return a binary STL: header of 80 bytes, number of triangles, then normal and corners of each as float32."""
    triangles = np.zeros(len(faces), dtype=_TRIANGLE)
    corners = vertices[faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    triangles["normal"] = np.divide(normals, lengths, out=np.zeros_like(normals), where=lengths > 0)
    triangles["corners"] = corners
    return STL_HEADER.ljust(80) + np.uint32(len(faces)).astype("<u4").tobytes() + triangles.tobytes()


def obj_bytes(name: str, surface: Surface) -> bytes:
    """Return a Wavefront OBJ with one object: vertices in LPS mm with four decimals, faces counted from 1."""
    vertices = "\n".join(f"v {x:.4f} {y:.4f} {z:.4f}" for x, y, z in surface.vertices.tolist())
    faces = "\n".join(f"f {a} {b} {c}" for a, b, c in (surface.faces + 1).tolist())
    title = "".join(c if c.isprintable() and not c.isspace() else "_" for c in name)
    return f"# ctseg; SPACE=LPS; UNIT=mm\no {title}\n{vertices}\n{faces}\n".encode()


def glb_bytes(surfaces: Mapping[str, Surface], colors: Mapping[str, Sequence[int]]) -> bytes:
    """Return a binary glTF 2.0 scene with a node, mesh and material for each surface, smoothly shaded.

    Args:
        surfaces: name -> surface in LPS mm; at least one.
        colors: name -> (r, g, b), 0..255, sRGB; a name without one is grey.
    """
    binary = bytearray()
    accessors: list[dict[str, Any]] = []
    views: list[dict[str, Any]] = []

    def add(values: NDArray[Any], kind: str, target: int, bounds: bool = False) -> int:
        component = _FLOAT if values.dtype == np.float32 else _UINT32
        views.append({"buffer": 0, "byteOffset": len(binary), "byteLength": values.nbytes, "target": target})
        entry = {"bufferView": len(views) - 1, "componentType": component, "count": len(values), "type": kind}
        if bounds:
            entry |= {"min": values.min(axis=0).tolist(), "max": values.max(axis=0).tolist()}
        accessors.append(entry)
        binary.extend(values.tobytes())
        return len(accessors) - 1

    meshes, materials = [], []
    for number, (name, surface) in enumerate(surfaces.items()):
        places = (surface.vertices @ GLTF_FROM_LPS.T * METRES).astype("<f4")
        normals = (vertex_normals(surface.vertices, surface.faces)[0] @ GLTF_FROM_LPS.T).astype("<f4")
        attributes = {
            "POSITION": add(places, "VEC3", _VERTICES, bounds=True),
            "NORMAL": add(normals, "VEC3", _VERTICES),
        }
        indices = add(surface.faces.astype("<u4").ravel(), "SCALAR", _INDICES)
        primitive = {"attributes": attributes, "indices": indices, "material": number, "mode": 4}
        meshes.append({"name": name, "primitives": [primitive]})
        materials.append(_material(name, colors.get(name, DEFAULT_COLOR)))
    scene = {
        "asset": {"version": "2.0", "generator": f"ctseg {__version__}", "extras": _MEANING},
        "scene": 0,
        "scenes": [{"nodes": list(range(len(meshes)))}],
        "nodes": [{"name": mesh["name"], "mesh": number} for number, mesh in enumerate(meshes)],
        "meshes": meshes,
        "materials": materials,
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": len(binary)}],
    }
    return _container(scene, bytes(binary))


_MEANING = {"x": "patient's left", "y": "patient's superior (up)", "z": "patient's anterior (front)", "unit": "m"}


def _material(name: str, color: Sequence[int]) -> dict[str, Any]:
    factor = [*(round(_linear(channel / 255.0), 6) for channel in color), 1.0]
    return {
        "name": name,
        "pbrMetallicRoughness": {"baseColorFactor": factor, "metallicFactor": 0.0, "roughnessFactor": 0.7},
    }


def _linear(value: float) -> float:
    """Turn sRGB into the linear light that glTF's factors are in (IEC 61966-2-1)."""
    return value / 12.92 if value <= 0.04045 else float(((value + 0.055) / 1.055) ** 2.4)


def _container(scene: Mapping[str, Any], binary: bytes) -> bytes:
    """Put scene and binary into one GLB; chunks end on 4 bytes, JSON filled with spaces, binary with zeros."""
    text = json.dumps(scene, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    binary += b"\0" * (-len(binary) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(binary), b"BIN\0") + binary
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks
