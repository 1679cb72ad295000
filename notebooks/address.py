"""Write the repository's address on GitHub into the notebooks.

    python notebooks/address.py OWNER/NAME

Each notebook has a badge that opens it in Colab, and a first cell that clones the repository. Both
need to know where the repository is. A fork has another address, so it runs this again.
"""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common.arguments import Parser, require, run_script  # noqa: E402
from common.files import write_text  # noqa: E402

FOLDER = Path(__file__).resolve().parent
NAME = r"[\w.-]+/[\w.-]+"
# In the first cell, and in the badge.
PLACES = [rf'(REPOSITORY = \\"https://github\.com/){NAME}(\\")', rf"(/github/){NAME}(/blob/main/)"]


def main(argv=None, folder=FOLDER):
    parser = Parser(__doc__)
    parser.add_argument("address", metavar="OWNER/NAME", help="as in https://github.com/OWNER/NAME")
    address = parser.parse_args(argv).address
    address = address.removeprefix("https://github.com/").rstrip("/").removesuffix(".git")
    require(
        re.fullmatch(NAME, address) is not None,
        f"'{address}' is no address: write OWNER/NAME, as in https://github.com/OWNER/NAME.",
    )
    for path in sorted(folder.glob("*.ipynb")):
        text = path.read_text(encoding="utf-8")
        for place in PLACES:
            text = re.sub(place, rf"\g<1>{address}\g<2>", text)
        write_text(path, text)
    print(f"the notebooks now clone and open https://github.com/{address}")


if __name__ == "__main__":
    run_script(main)
