"""`python -m gradwarden.cli`."""

from gradwarden.cli import main

if __name__ == "__main__":  # not in processes that this one starts
    main()
