"""Fusion learnt by counting, worked out by hand; a plane that cannot tell sides is heard on the rest."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers_phantoms import oblique_affine, write_nifti

from ctseg.cli import main
from ctseg.errors import ConfigError, InputError
from ctseg.planes.learnedfusion import Counter, LearnedFusion, read_fusion
from ctseg.planes.voting import consensus


def test_the_most_probable_label_by_hand() -> None:
    """One class. Truth: 90 voxels background, 10 labelled.

    The first source finds 8 of the 10 and labels 8 of the 90 wrongly, the second finds 5 and labels none. With one
    voxel added to each cell: P(says 1 | 1) = 9/12 and 6/12, P(says 1 | 0) = 9/92 and 1/92.
    - first alone: 10 * 9/12 * 6/12 = 3.75 against 90 * 9/92 * 91/92 = 8.71: background.
    - second alone: 10 * 3/12 * 6/12 = 1.25 against 90 * 83/92 * 1/92 = 0.88: label.
    """
    counts = np.array([[[82, 8], [2, 8]], [[90, 0], [5, 5]]])
    fusion = LearnedFusion((0, 7), counts, ("a", "b"), 1)
    first = np.array([[[0, 7, 0, 7]]])
    second = np.array([[[0, 0, 7, 7]]])
    assert fusion.fuse([first, second]).tolist() == [[[0, 0, 7, 7]]]
    assert consensus([first, second]).labels.tolist() == [[[0, 0, 0, 7]]]


def cases(rng: np.random.Generator, count: int) -> list[tuple[list[np.ndarray], np.ndarray]]:
    """Truth 1 left and 2 right of the middle. Axial misses one voxel in five, coronal confuses the sides of one in five
    and the sagittal plane finds every voxel, but calls all of them left."""
    made = []
    for _ in range(count):
        truth = np.zeros((16, 10, 10), np.uint8)
        truth[2:6, 2:8, 2:8], truth[10:14, 3:9, 1:7] = 1, 2
        axial = np.where(rng.random(truth.shape) < 0.2, 0, truth)
        coronal = np.where((rng.random(truth.shape) < 0.2) & (truth > 0), 3 - truth, truth)
        made.append(([axial, coronal, (truth > 0).astype(np.uint8)], truth))
    return made


def test_a_plane_that_cannot_tell_sides_is_heard_on_the_rest() -> None:
    rng = np.random.default_rng(0)
    counter = Counter(["axial", "coronal", "sagittal"])
    for masks, truth in cases(rng, 3):
        counter.add(masks, truth)
    fusion = counter.learned()
    assert fusion.counts[2].tolist() == [[4800 - 3 * 288, 0, 0], [0, 432, 0], [0, 432, 0]]
    ((masks, truth),) = cases(rng, 1)
    labelled = truth > 0
    voted, learnt = consensus(masks).labels, fusion.fuse(masks)
    # the vote believes the sagittal plane where the others differ; learnt, right voxels are lost where both fail
    assert (voted == truth)[labelled].mean() < 0.9 < 0.93 < (learnt == truth)[labelled].mean()
    assert (learnt == truth)[~labelled].all()
    axial_right = labelled & (masks[0] > 0)
    assert (learnt == truth)[axial_right].all(), "what axial labels is never wrong, and that was learnt"


def test_learn_and_use_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(1)
    affine = oblique_affine()
    names = ("axial", "coronal", "sagittal")
    for number, (masks, truth) in enumerate(cases(rng, 3)):
        for name, mask in zip((*names, "reference"), (*masks, truth), strict=True):
            (tmp_path / name).mkdir(exist_ok=True)
            write_nifti(tmp_path / name / f"head{number}.nii.gz", mask.astype(np.uint8), affine)
    turned = nib.load(tmp_path / "coronal" / "head0.nii.gz").as_reoriented(np.array([[1, -1], [0, 1], [2, -1]]))
    write_nifti(tmp_path / "coronal" / "head0.nii.gz", np.asarray(turned.dataobj), turned.affine)
    folders, out = [str(tmp_path / name) for name in names], tmp_path / "fusion.json"
    assert main(["learn-fusion", *folders, "--reference", str(tmp_path / "reference"), "-o", str(out)]) == 0
    said = capsys.readouterr().out
    assert "3 cases" in said and "sagittal: 0.500" in said
    fusion = read_fusion(out)
    assert fusion.sources == names and fusion.values == (0, 1, 2) and fusion.cases == 3
    assert fusion.counts.sum(axis=(1, 2)).tolist() == [4800] * 3
    joined = tmp_path / "joined"
    assert main(["consensus", *folders, "-o", str(joined), "--fusion", str(out)]) == 0
    found = nib.load(joined / "head2.nii.gz")
    arrays = [np.asarray(nib.load(tmp_path / name / "head2.nii.gz").dataobj) for name in names]
    assert np.array_equal(np.asarray(found.dataobj), fusion.fuse(arrays)) and np.allclose(found.affine, affine)
    capsys.readouterr()
    assert main(["consensus", *folders[:2], "-o", str(tmp_path / "x"), "--fusion", str(out)]) == 2
    assert "learnt of 3 masks (axial, coronal, sagittal)" in capsys.readouterr().err
    assert main(["consensus", *folders, "-o", str(tmp_path / "x"), "--fusion", str(out), "--least", "2"]) == 2


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="two or more"):
        Counter(["axial"])
    empty = Counter(["a", "b"])
    empty.add([np.zeros((2, 2, 2))] * 2, np.zeros((2, 2, 2)))
    with pytest.raises(ConfigError, match="without a label"):
        empty.learned()
    fusion = LearnedFusion((0, 1), np.ones((2, 2, 2), int), ("a", "b"), 1)
    with pytest.raises(ConfigError, match="label 5, which the fusion has not learnt"):
        fusion.fuse([np.full((1, 1, 1), 5), np.zeros((1, 1, 1))])
    with pytest.raises(ConfigError, match="expected labels from 0 to 255"):
        fusion.fuse([np.full((1, 1, 1), 300), np.zeros((1, 1, 1))])
    content = json.loads(fusion.as_bytes())
    for wrong in ({"schema": "x"}, {"counts": [[1]]}, {"values": [1, 2]}):
        (tmp_path / "f.json").write_text(json.dumps(content | wrong))
        with pytest.raises(InputError, match="no learnt fusion"):
            read_fusion(tmp_path / "f.json")
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    command = ["learn-fusion", str(tmp_path / "one"), str(tmp_path / "two"), "--reference", str(tmp_path / "one")]
    assert main([*command, "-o", str(tmp_path / "out.json")]) == 2
    assert "no case has a mask in each folder" in capsys.readouterr().err
