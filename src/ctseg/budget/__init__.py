"""`--max-ram`: what a run may hold in memory, and how it keeps to it."""
