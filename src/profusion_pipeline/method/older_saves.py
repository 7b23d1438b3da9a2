"""How a save takes the place of an older one, in a folder or on the Hub: what goes, what stays, in which order."""

import ast
import os
import re
from collections.abc import Collection
from pathlib import Path

from huggingface_hub import CommitInfo, hf_hub_download, list_repo_files, upload_folder

INDEX, CARD, ENTRY = "model_index.json", "README.md", "pipeline.py"
PREFIXED = re.compile(r"profusion_\w+\.py")  # most files of the code had such names, until November 2026


def code_of_older_save(entry: str, there: Collection[str]) -> set[str]:
    """Which files of a repository are code of an older version that this one no longer writes.

    Until November 2026 every file of the code lay at the top, and the docstring of `pipeline.py` named them.

    Args:
        entry: Text of that file.
        there: Paths in the repository.

    Returns:
        Paths of `there`; none if somebody else wrote that `pipeline.py`.

    Example:
        >>> entry = "'''What diffusers runs first.\\n\\n    from .pipeline_profusion import *\\n'''"
        >>> code_of_older_save(entry, ["pipeline_profusion.py", "my_notes.py"])
        {'pipeline_profusion.py'}
    """
    try:
        docstring = ast.get_docstring(ast.parse(entry)) or ""
    except (SyntaxError, ValueError):
        return set()
    named = {f"{name}.py" for name in re.findall(r"^ *from \.(\w+) import \*$", docstring, re.MULTILINE)}
    if "pipeline_profusion.py" not in named:
        return set()
    return {path for path in there if path in named or PREFIXED.fullmatch(path)}


def superseded_files(
    there: Collection[str], new: Collection[str], variant: str | None, *, old_code: Collection[str] = ()
) -> list[str]:
    """What of an older save must go when a new one takes its place: its code, and weights that would be read first.

    Weights of other variants and files of others stay.

    Args:
        there: Paths in the repository.
        new: Paths that are about to be written.
        variant: Of the weights that are about to be written.
        old_code: Paths of the older save's code, as [`code_of_older_save`] finds them.

    Returns:
        Paths of `there`.

    Example:
        >>> there = ["unet/model.safetensors.index.json", "unet/model-00001-of-00002.fp16.safetensors"]
        >>> superseded_files(there, ["unet/model.safetensors"], None)
        ['unet/model.safetensors.index.json']
    """
    mark = "" if variant is None else rf"\.{re.escape(variant)}"
    shard, kind = r"(?:-\d{5}-of-\d{5})?", r"\.(?:safetensors|bin)"
    weights = re.compile(rf"(\w+)/\w*model(?:{mark}{shard}{kind}|{kind}\.index{mark}\.json)")
    parts = {path.split("/")[0] for path in new}

    def goes(path: str) -> bool:
        found = weights.fullmatch(path)
        return path not in new and bool(path in old_code or (found and found[1] in parts))

    return sorted(path for path in there if goes(path))


def move_into(new: Path, target: Path, variant: str | None) -> None:
    """Put a whole repository in place of an older one: without an index, which nothing loads, until all is there.

    Args:
        new: The repository, on the same disk; it is empty afterwards.
        target: The older one.
        variant: Of the new weights.

    Example:
        >>> move_into(Path("saved/.new"), Path("saved"), None)  # doctest: +SKIP
    """
    (target / INDEX).unlink(missing_ok=True)
    files, there = _files(new), _files(target)
    old_code = code_of_older_save(_read_text(target / ENTRY), there) if ENTRY in there else ()
    for path in superseded_files(there, files, variant, old_code=old_code):
        (target / path).unlink()
        if not any((target / path).parent.iterdir()):
            (target / path).parent.rmdir()
    for path in sorted(files - {INDEX}):
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        os.replace(new / path, target / path)
    os.replace(new / INDEX, target / INDEX)


def upload_repository(
    folder: Path,
    repo_id: str,
    *,
    variant: str | None = None,
    commit_message: str | None = None,
    token: str | None = None,
    create_pr: bool = False,
    subfolder: str | None = None,
) -> CommitInfo:
    """Upload a folder as one commit, which also deletes what it supersedes. A model card on the Hub is kept.

    Args:
        folder: The repository.
        repo_id: An existing repository on the Hub.
        variant: Of the weights in the folder.
        commit_message: Of the commit.
        token: For the Hub; None takes the stored one.
        create_pr: Whether to open a pull request rather than commit.
        subfolder: Where in the repository the folder goes.

    Returns:
        The commit.

    Example:
        >>> upload_repository(Path("profusion-sd2"), "me/profusion-sd2")  # doctest: +SKIP
    """
    prefix = f"{subfolder}/" if subfolder else ""
    there = [path.removeprefix(prefix) for path in list_repo_files(repo_id, token=token) if path.startswith(prefix)]
    old_code = ()
    if ENTRY in there:
        old_code = code_of_older_save(_read_text(hf_hub_download(repo_id, f"{prefix}{ENTRY}", token=token)), there)
    return upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        path_in_repo=subfolder,
        commit_message=commit_message or "Upload ProFusionPipeline",
        token=token,
        create_pr=create_pr,
        ignore_patterns=[CARD] if CARD in there else None,
        delete_patterns=superseded_files(there, _files(folder), variant, old_code=old_code) or None,
    )


def _read_text(path: str | Path) -> str:
    """Of a file that may be somebody else's, in whatever encoding."""
    return Path(path).read_text(encoding="utf-8", errors="replace")


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
