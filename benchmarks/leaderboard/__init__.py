"""The papers on the test beds: what is trained, runs, statistics, and the document."""
