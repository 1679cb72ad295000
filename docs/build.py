"""Makes all pages of docs/ anew: python docs/build.py"""

import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from docs import pages  # noqa: E402

if __name__ == "__main__":
    pages.main()
    if (ROOT / "docs" / "build_playground.py").exists():
        importlib.import_module("docs.build_playground").main()
