"""`python -m pah`: the command `pah`."""

import sys

from pah.cli import main

sys.exit(main())
