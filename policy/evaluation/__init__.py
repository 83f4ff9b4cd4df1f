"""What a program decides: one example, columns of them, batches of a run, and recorded inputs."""
