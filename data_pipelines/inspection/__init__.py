"""What `data_pipelines.inspect` reads of a prepared data set, says and draws."""
