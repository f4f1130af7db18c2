"""Images turned by a rigid or affine transform, and back."""
