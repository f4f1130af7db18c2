"""`ctseg doctor`: what of this machine works."""
