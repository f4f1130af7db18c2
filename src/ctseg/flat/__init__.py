"""Flat images: photographs, ultrasound, single slices."""
