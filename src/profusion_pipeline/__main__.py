"""`python -m profusion_pipeline` is `profusion`, so `accelerate launch -m profusion_pipeline train ...` works."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
