"""Heads: the brain, the mirror plane, the ASPECTS regions, and generated heads to train on."""
