"""`python -m pah`: the command `pah`."""

import sys

from pah import ranks
from pah.cli import main

status = main()
if ranks.launched():
    ranks.leave(status)
sys.exit(status)
