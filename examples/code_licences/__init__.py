"""Train a small language model on the Python files installed here, each as far as its licence allows."""
