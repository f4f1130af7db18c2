"""DICOM: series in, SEG in and out."""
