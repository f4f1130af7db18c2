"""What a run leaves in a folder: mask, surfaces, picture, report."""
