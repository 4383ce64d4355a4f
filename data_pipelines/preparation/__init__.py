"""What `data_pipelines.prepare` builds: the plan of it, and its place on disk."""
