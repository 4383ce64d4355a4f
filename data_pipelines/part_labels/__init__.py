"""Part labels: their classes by kind, groupings into parts, files of other tools."""
