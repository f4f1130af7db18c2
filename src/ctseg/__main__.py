"""`python -m ctseg` is the command line `ctseg`."""

import sys

from ctseg.cli import main

sys.exit(main())
