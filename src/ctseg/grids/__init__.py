"""Images and label maps from grid to grid: onto a network's, and back onto the source's."""
