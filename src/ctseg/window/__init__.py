"""`ctseg app`: a page on this computer on which a doctor segments a CT without a terminal."""
