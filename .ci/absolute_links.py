"""README.md with links that lead to a repository, for the package's page, where relative ones lead nowhere."""

import re
import sys


def absolute_links(text: str, repository: str, commit: str) -> str:
    """Each `](path)` of a file or folder of the repository -> its address there; pictures as they are."""

    def absolute(match: re.Match) -> str:
        kind = "raw" if match[1].startswith("!") else "blob"
        return f"{match[1]}({repository}/{kind}/{commit}/{match[2]})"

    return re.sub(r"(!?\[[^\]]*\])\((?!https?://|#)([^)]+)\)", absolute, text)


if __name__ == "__main__":
    path, repository, commit = sys.argv[1:]
    with open(path, encoding="utf-8") as file:
        text = file.read()
    with open(path, "w", encoding="utf-8") as file:
        file.write(absolute_links(text, repository, commit))
