"""Networks that turn images into named maps."""
