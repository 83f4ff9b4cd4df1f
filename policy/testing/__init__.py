"""Unit tests of policies: the YAML files, running them, coverage and mutation."""
