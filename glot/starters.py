"""Files to begin with: a pooler with its test (`glot new pooler`), a study (`glot init`)."""

from importlib import resources
from pathlib import Path

from glot.errors import ConfigError

TEMPLATES = {"pooler": ("pooler_template.txt", ".py"), "study": ("study_template.yaml", ".yaml")}
"""Kind -> the template among the package's resources, and the suffix of the file."""


def write_starter(kind: str, text: str) -> str:
    """Write a template under a new name; returns what to do next.

    Args:
        kind: a name of `TEMPLATES`.
        text: the file, as the user wrote it.

    Raises:
        ConfigError: of another kind, there already, or not writable.
    """
    template, suffix = TEMPLATES[kind]
    path = Path(text)
    if path.suffix != suffix:
        raise ConfigError(f"{text}: must end in {suffix}")
    if path.exists():
        raise ConfigError(f"{text}: is there already; choose another name, or move it away")
    name = "".join(part.capitalize() for part in path.stem.replace("-", "_").split("_")) if kind == "pooler" else path.stem
    if kind == "pooler" and not name.isidentifier():
        raise ConfigError(f"{text}: its name must make a Python name, such as my_pooler.py")
    content = resources.files("glot").joinpath(f"resources/{template}").read_text(encoding="utf-8")
    try:
        path.write_text(content.replace("@FILE@", text).replace("@NAME@", name), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{text}: cannot be written ({error.strerror}); name a file in a folder that is there") from error
    following = {
        "pooler": f"test it with `python {text}`, train it with `glot run --task=stress --pooling_method={text}:{name}`",
        "study": f"look at its runs with `glot sweep {text} --dry_run`",
    }
    return f"{text}: written; {following[kind]}"
