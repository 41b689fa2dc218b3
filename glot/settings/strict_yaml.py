"""YAML whose values stay texts, and whose mistakes are said by line."""

from pathlib import Path
from typing import Any

import yaml

from glot.errors import reason

MERGE = "<<"


class MappingError(yaml.constructor.ConstructorError):
    """A key that stands twice in one mapping, of which YAML would silently keep the last."""


class _TextLoader(yaml.BaseLoader):
    """Texts only: YAML would read 0_1 as a number."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """As the base class does, with YAML's merge key, after a look at the keys."""
        seen = set()
        node.value = self._merged(node)
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise MappingError(None, None, f"{key.value} is set twice; keep one", key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)

    def _merged(self, node: Any) -> list[tuple[Any, Any]]:
        """Keys and values of a mapping with those of `<<: *name` and `<<: [*one, *two]`, unless it has them itself."""
        own = [(key, value) for key, value in node.value if key.value != MERGE]
        known = {key.value for key, _ in own if isinstance(key, yaml.ScalarNode)}
        for key, value in node.value:
            for part in (value.value if isinstance(value, yaml.SequenceNode) else [value]) if key.value == MERGE else []:
                if not isinstance(part, yaml.MappingNode):
                    raise MappingError(None, None, f"{MERGE} must name a mapping, or a list of them", key.start_mark)
                added = [(name, given) for name, given in self._merged(part) if name.value not in known]
                own, known = own + added, known | {name.value for name, _ in added}
        return own


def load_texts(text: str) -> Any:
    """What a YAML text holds: dicts and lists of texts.

    Raises:
        yaml.YAMLError, ValueError, RecursionError: see `yaml_reason`.
    """
    return yaml.load(text, Loader=_TextLoader)


def joined(value: Any) -> Any:
    """A list of texts as a flag takes it, with commas between; anything else as it is."""
    return ",".join(value) if isinstance(value, list) and all(isinstance(word, str) for word in value) else value


def is_same_yaml(one: Path, other: Path) -> bool:
    """Whether two files say the same, whatever their comments; one that cannot be read says nothing that another does."""
    try:
        return bool(load_texts(one.read_text(encoding="utf-8")) == load_texts(other.read_text(encoding="utf-8")))
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return False


def yaml_reason(error: Exception) -> str:
    """What is wrong, and in which line."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or not problem:
        return f"not YAML ({reason(error)})"
    remedy = "; indent with spaces" if "'\\t'" in problem else ""
    said = f"line {mark.line + 1}: {problem}{remedy}"
    return said if isinstance(error, MappingError) else f"not YAML ({said})"
