"""What is known of runs: ML Metadata, interrupted executions, the lock on an output folder, hashes of code."""
