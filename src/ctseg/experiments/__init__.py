"""Experiments: files of differences, run one after another, compared in a table and a report."""
