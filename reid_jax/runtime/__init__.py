"""What a run needs on machines: mesh, processes, checkpoints, work directory, logs."""
