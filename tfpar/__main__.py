"""`python -m tfpar` is `tfpar`."""

import sys

from tfpar.cli import main

sys.exit(main())
