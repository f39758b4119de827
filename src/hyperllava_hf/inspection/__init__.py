"""What a checkpoint holds, and what its experts do to an input."""
