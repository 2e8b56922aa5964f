"""`python -m onerank` is the command `onerank`."""

import sys

from onerank.cli import main

if __name__ == "__main__":
    sys.exit(main())
