"""On which slices an organ is."""
