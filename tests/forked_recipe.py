"""A recipe in two ranks, forked from one process.

python -m tests.forked_recipe RECIPE WORDS...
"""

import importlib
import runpy
import sys
from pathlib import Path

from tests.forked_ranks import fork_ranks

if __name__ == "__main__":
    recipe = Path(sys.argv[1])
    sys.argv = sys.argv[1:]
    sys.path.insert(0, str(recipe.parent))
    importlib.import_module(recipe.stem)  # all that it imports, once
    sys.exit(fork_ranks(2, lambda rank: runpy.run_path(str(recipe), run_name="__main__")))
