"""`--mode=plan`: a config compiled for TPUs and GPUs that are not here."""
