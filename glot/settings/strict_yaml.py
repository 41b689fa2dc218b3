"""YAML whose values stay texts, and whose mistakes are said by line."""

from typing import Any

import yaml

from glot.errors import reason


class TwiceError(yaml.constructor.ConstructorError):
    """A key that stands twice in one mapping, of which YAML would silently keep the last."""


class _TextLoader(yaml.BaseLoader):
    """Texts only: YAML would read 0_1 as a number."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """As the base class does, after a look at the keys."""
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise TwiceError(None, None, f"{key.value} is set twice; keep one", key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)


def load_texts(text: str) -> Any:
    """What a YAML text holds: dicts and lists of texts.

    Raises:
        yaml.YAMLError, ValueError, RecursionError: see `yaml_reason`.
    """
    return yaml.load(text, Loader=_TextLoader)


def yaml_reason(error: Exception) -> str:
    """What is wrong, and in which line."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or not problem:
        return f"not YAML ({reason(error)})"
    remedy = "; indent with spaces" if "'\\t'" in problem else ""
    said = f"line {mark.line + 1}: {problem}{remedy}"
    return said if isinstance(error, TwiceError) else f"not YAML ({said})"
