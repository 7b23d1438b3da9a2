"""What mkdocs does beside its own: the README is the first page, formulas are MathML, links out of docs/ lead away."""

import re
import sys
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / ".ci"))
from addresses import repository  # noqa: E402

MATH = re.compile(r"^```math\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?://|#)([^)#]+)(#[^)]*)?\)")


def on_config(config):
    """The repository is the one that setup.cfg names."""
    config.repo_url = config.repo_url or repository()
    return config


def on_files(files, config):
    """The README as `index.md`, with links as they are from docs/."""

    def moved(match: re.Match) -> str:
        path = match[3].removeprefix("docs/") if match[3].startswith("docs/") else f"../{match[3]}"
        return f"{match[1]}[{match[2]}]({path}{match[4] or ''})"

    text = LINK.sub(moved, (ROOT / "README.md").read_text(encoding="utf-8"))
    files.append(File.generated(config, "index.md", content=text))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links to what isn't on the site -> to the repository, if setup.cfg says where it is; else their words alone."""

    def outside(match: re.Match) -> str:
        target = (ROOT / "docs" / match[3]).resolve()
        if not target.exists():
            raise FileNotFoundError(f"{page.file.src_uri} links to {match[3]}, which is not there.")
        if target.is_relative_to(ROOT / "docs") and target.is_file():
            return match[0]
        address = f"{config.repo_url}/blob/main/{target.relative_to(ROOT)}" if config.repo_url else None
        return f"[{match[2]}]({address})" if address else match[2]

    markdown = MATH.sub(lambda match: convert(match[1].strip(), display="block"), markdown)
    return LINK.sub(outside, markdown) if "/" not in page.file.src_uri else markdown
