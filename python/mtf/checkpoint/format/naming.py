"""Names of a run's checkpoints: made from a template, and recognised by it. Imports no torch."""

from __future__ import annotations

import re
import string

from mtf.errors import ConfigError

_EXAMPLE_STEP = 1234567


class NameTemplate:
    """A template such as ``step-{step:08d}`` and the names it makes."""

    def __init__(self, template: str) -> None:
        """
        Args:
            template: a file name with ``{step}`` and optionally ``{epoch}``, each with an integer format specifier.

        Raises:
            ConfigError: no ``{step}``, another field, a directory separator, a leading dot, or a bad format specifier.
        """
        self.template = template
        pattern = ""
        seen: set[str] = set()
        try:
            for text, field, spec, conversion in string.Formatter().parse(template):
                pattern += re.escape(text)
                if field is None:
                    continue
                if field not in ("step", "epoch") or conversion:
                    raise ValueError(f"unknown field {field!r}; there are step and epoch")
                if field in seen:
                    pattern += f"(?P={field})"
                else:
                    pattern += rf"(?P<{field}>\s*[0-9][0-9,_]*)"
                seen.add(field)
                format(0, spec or "")
            example = template.format(step=_EXAMPLE_STEP, epoch=7)
        except (ValueError, KeyError, IndexError) as error:
            raise ConfigError(f"checkpoint.filename_template: {template!r}: {error}") from None
        self._pattern = re.compile(pattern)
        if "step" not in seen:
            raise ConfigError(f"checkpoint.filename_template must contain {{step}}, it is {template!r}")
        if "/" in example or example.startswith(".") or "\0" in example or self.step_of(example) is None:
            raise ConfigError(
                f"checkpoint.filename_template must make plain file names that don't begin with a dot and "
                f"hold their numbers in decimal digits; {template!r} makes {example!r}"
            )

    def name(self, step: int, epoch: int) -> str:
        """The name of the checkpoint after ``step`` updates in ``epoch``."""
        return self.template.format(step=step, epoch=epoch)

    def step_of(self, name: str) -> int | None:
        """The step in a name that this template made; None for any other name."""
        match = self._pattern.fullmatch(name)
        if match is None:
            return None
        values = {key: int(re.sub(r"[^0-9]", "", text)) for key, text in match.groupdict().items()}
        made = self.name(values["step"], values.get("epoch", 7))
        return values["step"] if made == name else None
