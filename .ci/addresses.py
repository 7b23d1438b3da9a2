"""Where the repository lies is said once, as `url` in setup.cfg; from there come the links that need it.

`setup.py` takes the package's page from here, and the site its links out of docs/. The notebooks carry a badge that
opens them in Colab, and install from there what Colab lacks: `python .ci/addresses.py` writes both into them. As long
as setup.cfg names no repository, there are no badges, the page has relative links, and notebooks install from the
folder around them.
"""

import configparser
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
EXTRAS = "[train,eval]"  # what the notebooks need


def repository(root: Path = ROOT) -> str | None:
    """The address in setup.cfg, such as https://github.com/me/profusion_pipeline; None if there is none."""
    config = configparser.ConfigParser()
    config.read(root / "setup.cfg", encoding="utf-8")
    return config["metadata"].get("url", "").rstrip("/") or None


def absolute_links(text: str, address: str | None) -> str:
    """Each `](path)` of a file or folder of the repository -> its address there; pictures as they are."""
    if address is None:
        return text

    def absolute(match: re.Match) -> str:
        kind = "raw" if match[1].startswith("!") else "blob"
        return f"{match[1]}({address}/{kind}/HEAD/{match[2]})"

    return re.sub(r"(!?\[[^\]]*\])\((?!https?://|#)([^)]+)\)", absolute, text)


def package_page(root: Path = ROOT) -> str:
    """README.md as a package index shows it, where relative links lead nowhere."""
    return absolute_links((root / "README.md").read_text(encoding="utf-8"), repository(root))


def with_address(notebook: dict, name: str, address: str | None) -> dict:
    """A notebook whose first cell has the badge under its title, and whose first code installs what is missing."""
    cells = [dict(cell) for cell in notebook["cells"]]
    lines = [line for line in "".join(cells[0]["source"]).splitlines() if BADGE not in line]
    if address is not None:
        path = address.removeprefix("https://github.com/")
        opened = f"https://colab.research.google.com/github/{path}/blob/main/examples/{name}.ipynb"
        lines[1:1] = ["", f"[![Open in Colab]({BADGE})]({opened})"]
    cells[0]["source"] = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).splitlines(keepends=True)
    code = next(cell for cell in cells if cell["cell_type"] == "code")
    source = f"..{EXTRAS}" if address is None else f"profusion-pipeline{EXTRAS} @ git+{address}"
    text = re.sub(r'install --quiet "[^"]*"', f'install --quiet "{source}"', "".join(code["source"]))
    code["source"] = text.splitlines(keepends=True)
    return notebook | {"cells": cells}


if __name__ == "__main__":
    for path in sorted((ROOT / "examples").glob("*.ipynb")):
        found = json.loads(path.read_text(encoding="utf-8"))
        written = json.dumps(with_address(found, path.stem, repository()), indent=1, ensure_ascii=False)
        path.write_text(f"{written}\n", encoding="utf-8")
