"""From a checkpoint to a certified package in the Triton model repository."""
