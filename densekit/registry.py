"""Names for the leaves: backbones, heads, data sets, samplings.

A part is one file in its folder: a decorated builder whose signature is the schema of its options. The folder and
those in it are scanned when a name is first looked up, so a new part is one new file and nothing else. Parts can also
be imported plainly: the registry is a door for names in configs, never the only one.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import pkgutil
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import pydantic

from densekit.errors import DensekitError, nearest, plain_words

Builder = TypeVar("Builder", bound=Callable[..., Any])


class Registry:
    """Builders by name, for one kind of part.

    Args:
        kind: what the parts are called in messages, such as ``backbone``.
        package: the folder to scan, such as ``densekit.backbones``.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._builders: dict[str, Callable[..., Any]] = {}
        self._prefixes: dict[str, Callable[..., Any]] = {}
        self._scanned = False

    def register(self, builder: Builder) -> Builder:
        """Register a builder under its own name (decorator)."""
        self.add(builder.__name__, builder)
        return builder

    def add(self, name: str, builder: Callable[..., Any]) -> None:
        """Register a builder under ``name``: for tables of variants."""
        if name in self._builders:
            raise DensekitError(f"{self.kind} {name!r} is registered twice; names must be unique, rename one of them")
        self._builders[name] = builder

    def extend(self, base: Callable[..., Any], **fixed: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Register a builder that adds to what another builds, under its own name and with the options of both.

        A decorator: the function below it takes what ``base`` gives, then its own options. What it becomes is called
        as ``base`` is.

        Args:
            base: a builder.
            fixed: options of ``base`` that are no option any more.
        """

        def register(builder: Callable[..., Any]) -> Callable[..., Any]:
            below, above = (inspect.signature(one, eval_str=True) for one in (base, builder))
            own = {n: p for n, p in above.parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}
            if twice := [n for n in own if n in below.parameters]:
                name, extended = builder.__name__, base.__name__
                raise DensekitError(f"option {twice[0]!r} of {name!r} is one of {extended!r} already; rename it")

            def build(*given: Any, **options: Any) -> Any:
                part = base(*given, **{n: v for n, v in options.items() if n not in own}, **fixed)
                return builder(part, **{n: v for n, v in options.items() if n in own})

            parameters = [*(p for n, p in below.parameters.items() if n not in fixed), *own.values()]
            signature = inspect.Signature(parameters, return_annotation=above.return_annotation)
            functools.update_wrapper(build, builder)
            build.__signature__ = signature  # type: ignore[attr-defined]
            self.add(builder.__name__, build)
            return build

        return register

    def register_prefix(self, builder: Builder) -> Builder:
        """Register a builder for all names ``<its name>/<rest>``: it is called with ``rest`` first (decorator)."""
        self._prefixes[builder.__name__] = builder
        return builder

    def names(self) -> list[str]:
        """All registered names, sorted; a prefix stands as ``prefix/...``."""
        self._scan()
        return sorted(self._builders) + [f"{p}/..." for p in sorted(self._prefixes)]

    def options(self, name: str) -> dict[str, inspect.Parameter]:
        """The keyword-only parameters of the builder: what a config may set beside what ``build`` is given."""
        parameters = inspect.signature(self._lookup(name)[0], eval_str=True).parameters
        return {n: p for n, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}

    def product(self, name: str, path: str = "") -> Any:
        """The class that the builder says it gives."""
        return inspect.signature(self._lookup(name, path)[0], eval_str=True).return_annotation

    def build(self, name: str, options: Mapping[str, Any], *given: Any, path: str = "", **fixed: Any) -> Any:
        """Build a part.

        Args:
            name: registered name.
            options: what the user wrote, checked against the builder's signature: names, types, required ones.
            given: positional arguments of the builder (such as the backbone's levels).
            path: where the options stand in the config, for messages.
            fixed: keyword arguments that the program, not the user, decides; ignored where the builder has no such one.

        Raises:
            DensekitError: unknown name, unknown or missing option, or a value of the wrong type.
        """
        builder, rest = self._lookup(name, path)
        parameters = self.options(name)
        own = {n: v for n, v in fixed.items() if n in parameters}
        values = self._checked(name, options, {n: p for n, p in parameters.items() if n not in own}, path)
        return builder(*rest, *given, **values, **own)

    def _lookup(self, name: str, path: str = "") -> tuple[Callable[..., Any], tuple[str, ...]]:
        self._scan()
        if name in self._builders:
            return self._builders[name], ()
        prefix, slash, rest = name.partition("/")
        if slash and prefix in self._prefixes:
            return self._prefixes[prefix], (rest,)
        where = f"{path}.name: " if path else ""
        raise DensekitError(f"{where}there is no {self.kind} {name!r}; {nearest(name, self._builders)}")

    def _checked(
        self, name: str, options: Mapping[str, Any], parameters: dict[str, inspect.Parameter], path: str
    ) -> dict[str, Any]:
        dot = f"{path}." if path else ""
        for key in options:
            if key not in parameters:
                raise DensekitError(f"{dot}{key}: {self.kind} {name!r} has no such option; {nearest(key, parameters)}")
        for key, parameter in parameters.items():
            if parameter.default is inspect.Parameter.empty and key not in options:
                raise DensekitError(f"{dot}{key}: {self.kind} {name!r} needs this option; add it to the config")
        return {key: _converted(value, parameters[key].annotation, f"{dot}{key}") for key, value in options.items()}

    def _scan(self) -> None:
        if self._scanned:
            return
        self._scanned = True
        package = importlib.import_module(self.package)
        for module in sorted(m.name for m in pkgutil.walk_packages(package.__path__, f"{self.package}.")):
            importlib.import_module(module)


def _converted(value: Any, annotation: Any, path: str) -> Any:
    adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(annotation)
    try:
        return adapter.validate_python(value)
    except pydantic.ValidationError as error:
        raise DensekitError(_explained(error, value, annotation, path)) from None


def _explained(error: pydantic.ValidationError, value: Any, annotation: Any, path: str) -> str:
    """The deepest of the problems: of a union the others only say that the value is no such kind at all."""
    problem = max(error.errors(include_url=False), key=lambda p: len(p["loc"]))
    for part in problem["loc"]:  # names of a union's members stand among the keys
        inner = value.get(part) if isinstance(value, Mapping) else None
        if isinstance(value, list | tuple) and isinstance(part, int) and part < len(value):
            inner = value[part]
        if inner is not None:
            path, value = f"{path}.{part}", inner
    if problem["type"] == "unexpected_keyword_argument":
        kinds = [k for k in (annotation, *typing.get_args(annotation)) if dataclasses.is_dataclass(k)]
        known = [field.name for kind in kinds for field in dataclasses.fields(kind)]
        return f"{path}: there is no such option; {nearest(path.rpartition('.')[2], known)}"
    return f"{path}: {plain_words(problem['msg'])}, not {value!r}"


BACKBONES = Registry("backbone", "densekit.backbones")
HEADS = Registry("head", "densekit.heads")
DATASETS = Registry("data set", "densekit.data.formats")
SAMPLINGS = Registry("sampling", "densekit.data.sampling")
