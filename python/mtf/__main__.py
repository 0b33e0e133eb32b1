"""`python -m mtf`: the same as the `mtf` command."""

import sys

from mtf.cli import main

sys.exit(main())
