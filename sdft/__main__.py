"""`python -m sdft` is the command `sdft`."""
import sys

from sdft.cli import main

sys.exit(main())
