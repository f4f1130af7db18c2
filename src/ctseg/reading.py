"""One way in for every image: any supported format to a checked `Volume`, or one sentence that says why not."""

from __future__ import annotations

from pathlib import Path

from ctseg.checks import AIR_HU, check_hounsfield, replace_not_finite
from ctseg.dicom.tilt import is_tilted
from ctseg.errors import InputError
from ctseg.geometry import clean_affine, spacing_of
from ctseg.sources import Loaded
from ctseg.volume import Volume

_NIFTI = (".nii", ".nii.gz")
_NRRD = (".nrrd", ".nhdr")
_METAIMAGE = (".mha", ".mhd")
_DICOM = (".dcm", ".dicom", ".ima")
SUPPORTED = "NIfTI (.nii, .nii.gz), NRRD (.nrrd, .nhdr), MetaImage (.mha, .mhd), or a DICOM series (folder or .zip)"


def read_volume(path: str | Path, modality: str = "CT") -> Volume:
    """Read one 3D image of any supported format and check it.

    Args:
        path: a NIfTI, NRRD or MetaImage file, a DICOM file, a folder or a zip with DICOM files (sub-folders too; the
            largest series of the modality is taken and named in the notes).
        modality: "CT" switches on the check of Hounsfield units; any other name skips it. DICOM series of another
            modality are passed over.

    Returns:
        The volume in the source's stored order, with the exact and the cleaned affine, and a note for each thing
        that was corrected or chosen.

    Raises:
        InputError: missing, empty, truncated, no image, unknown format, no single scalar 3D volume, or plainly no CT.
        GeometryError: NaN or singular affine, zero or negative spacing, shear, missing or uneven slices.
        ResourceError: the declared size does not fit in memory.
    """
    source = Path(path)
    try:
        loaded = _load(source, modality)
    except MemoryError as error:
        raise InputError(f"{source} does not fit in memory; crop it, or use a machine with more") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{source} cannot be read: {reason}; check the file and its rights") from error
    what = str(source)
    is_ct = modality.upper() == "CT"
    array, word = replace_not_finite(loaded.array, AIR_HU if is_ct else 0, what)
    affine = loaded.affine.copy() if is_tilted(loaded.affine) else clean_affine(loaded.affine)
    words = [word]
    if is_ct:
        words.append(check_hounsfield(array, spacing_of(affine), what, loaded.eight_bit))
    return Volume(
        array=array,
        affine=affine,
        source_affine=loaded.affine,
        source=source,
        format=loaded.format,
        header=loaded.header,
        series_uid=loaded.series_uid,
        notes=(*loaded.notes, *(word for word in words if word)),
        slices=loaded.slices,
    )


def _load(source: Path, modality: str) -> Loaded:
    """Choose the reader by the name."""
    if not source.exists():
        raise InputError(f"{source} does not exist; check the path")
    name = source.name.lower()
    if source.is_dir() or name.endswith((".zip", *_DICOM)):
        from ctseg.dicom.reading import read_dicom

        return read_dicom(source, modality)
    if not source.is_file():
        raise InputError(f"{source} is neither a file nor a folder; give {SUPPORTED}")
    if name.endswith(_NIFTI):
        from ctseg.nifti import read_nifti

        return read_nifti(source)
    from ctseg.itkimages import read_itk

    if name.endswith(_NRRD):
        return read_itk(source, "nrrd")
    if name.endswith(_METAIMAGE):
        return read_itk(source, "metaimage")
    raise InputError(f"{source} has a name that tells no known format; give {SUPPORTED}")
