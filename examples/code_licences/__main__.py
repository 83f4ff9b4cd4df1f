"""`python -m examples.code_licences`: the whole path, from installed packages to a verified ledger."""

import os

# Several processes may share the cores; waiting threads that spin would slow all of them. Read by OpenMP when
# torch is imported, so it must be set before.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from examples.code_licences.train import main

if __name__ == "__main__":
    main()
