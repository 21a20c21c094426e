"""What comes with the package beside its modules: the scripts in ``tools/`` and the YAML files in ``configs/``."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def folder(name: str) -> Path:
    """``tools`` or ``configs``: inside an installed package, beside it in a checkout."""
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


def configs() -> dict[str, Path]:
    """The configs that come with densekit, by name (the file's, without its ending), sorted by folder and name."""
    return {path.stem: path for path in sorted(folder("configs").rglob("*.yaml"))}
