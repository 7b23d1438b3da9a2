"""Our docstrings say `Example:` where griffe, which reads them for the site, knows `Examples:`."""

import re

from griffe import Extension


class PluralExamples(Extension):
    """Sections of examples are shown as code, without their prompts' flags."""

    def on_object(self, *, obj, **kwargs):
        if obj.docstring:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
