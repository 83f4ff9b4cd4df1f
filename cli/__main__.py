"""`python -m gradwarden.cli`."""

from gradwarden.cli import main

main()
