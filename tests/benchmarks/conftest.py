"""Makes the benchmarks importable; they are run from the repository root and never installed."""

import sys
from pathlib import Path

# First, because some published packages install a top-level `benchmarks` too.
sys.path.insert(0, str(Path(__file__).parents[2]))
