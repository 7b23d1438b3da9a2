"""Docstrings as griffe, which reads them for the site, has them: `Examples:` for `Example:`, `name` for [`name`]."""

import re

from griffe import Extension


class PluralExamples(Extension):
    """Sections of examples are shown as code, without their prompts' flags."""

    def on_object(self, *, obj, **kwargs):
        if obj.docstring:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = re.sub(r"\[(`[\w.]+`)\](?![(\[])", r"\1", text)
