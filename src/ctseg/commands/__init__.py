"""One module for each command of `ctseg`: its options, and what it prints."""
