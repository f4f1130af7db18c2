"""How good masks are: scores, their summary over cases and patients, and the report."""
