"""A module for each published data set, the table of one's own, the list of all."""
