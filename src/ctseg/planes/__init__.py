"""Several opinions on one volume, one for each plane, joined."""
