"""One module for each published data set, the table of one's own, and the list of all."""
