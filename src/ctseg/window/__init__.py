"""`ctseg app`: a page on this computer for who would see an organ or a lesion without a terminal."""
