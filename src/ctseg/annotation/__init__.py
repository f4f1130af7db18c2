"""Active learning: what to annotate next, and the networks trained on what was."""
