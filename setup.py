"""Everything is in setup.cfg but the package's page: README.md, with links that lead to the repository named there."""

import sys
from pathlib import Path

from setuptools import setup

sys.path.insert(0, str(Path(__file__).resolve().parent / ".ci"))
from addresses import package_page  # noqa: E402

setup(long_description=package_page())
