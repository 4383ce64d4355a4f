"""`--mode=benchmark`: what is timed, the points of a sweep, the report."""
