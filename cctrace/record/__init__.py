"""The recorder: runs the target, takes its events out of the rings, writes the run."""
