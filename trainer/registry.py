"""`Registry`: the classes of one kind (models, heads, losses) by name, with their constructors as the schema."""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any, Generic, TypeVar, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from transform.errors import SpecError
from transform.import_path import import_object, is_import_path

T = TypeVar("T")


class Registry(Generic[T]):
    """Finds classes by the name that a spec gives, and checks settings against their constructors.

    Classes of this package register themselves by the decorator `register`; every module of the room is imported before
    the first look-up, so that a new file is found without a list to edit. A class of the user's own is found by its
    import path, `package.module:Name`.

    Args:
        room: str. The package whose modules hold the classes.
        base: type. What each class is a subclass of.
        provided: iterable of str. The parameters of constructors that are no settings: the package fills them in.
    """

    def __init__(self, room: str, base: type[T], provided: Iterable[str]):
        self._room = room
        self._base = base
        self._provided = {"self", *provided}
        self._classes: dict[str, type[T]] = {}

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Class decorator that makes a class known under a name."""

        def remember(cls: type[T]) -> type[T]:
            self._classes[name] = cls
            return cls

        return remember

    def classes(self) -> dict[str, type[T]]:
        """All registered classes by name, in the order of names."""
        package = importlib.import_module(self._room)
        for module in pkgutil.walk_packages(package.__path__, f"{self._room}."):
            importlib.import_module(module.name)
        return dict(sorted(self._classes.items()))

    def find(self, name: str, settings: Mapping[str, Any], where: str) -> type[T]:
        """The class of a name or import path, which takes the settings.

        Args:
            name: str. A registered name, or `package.module:Name`.
            settings: mapping. The constructor's arguments by name.
            where: str. The place in the spec, such as `model.head`, for messages.

        Returns:
            The class.

        Raises:
            SpecError: for an unknown name or setting, or a value of a wrong type.
        """
        cls = self._imported(name, where) if is_import_path(name) else self._registered(name, where)
        parameters = self._parameters(cls)
        for setting, value in settings.items():
            if setting not in parameters:
                raise SpecError(
                    f"{where}.{setting}: a setting of `{name}` is expected. Received: `{setting}`. "
                    + _cure(setting, parameters, f"Known: {', '.join(parameters) or 'none'}.")
                )
            _check_type(cls, setting, value, f"{where}.{setting}")
        for setting, parameter in parameters.items():
            if parameter.default is parameter.empty and setting not in settings:
                raise SpecError(
                    f"{where}.{setting}: a value is expected, as `{name}` has no default for it. Received: nothing."
                )
        return cls

    def build(self, name: str, settings: Mapping[str, Any], where: str, /, *arguments: Any, **options: Any) -> T:
        """An instance of the class that `find` gives.

        Args:
            name: str. As for `find`.
            settings: mapping. As for `find`.
            where: str. As for `find`.
            *arguments: what the constructor takes beside the settings.
            **options: what it takes by name beside the settings.

        Returns:
            The instance.

        Raises:
            SpecError: as `find`, and for a value that the constructor refuses with a ValueError.
        """
        cls = self.find(name, settings, where)
        try:
            return cls(*arguments, **settings, **options)
        except ValueError as error:
            raise SpecError(f"{where}: {error}") from error

    def settings(self, cls: type[T]) -> list[str]:
        """The names of a class's settings: the parameters of its constructor that a spec may give."""
        return list(self._parameters(cls))

    def _parameters(self, cls: type[T]) -> dict[str, inspect.Parameter]:
        return {
            name: parameter
            for name, parameter in inspect.signature(cls.__init__).parameters.items()
            if name not in self._provided and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        }

    def _registered(self, name: str, where: str) -> type[T]:
        classes = self.classes()
        if name not in classes:
            raise SpecError(
                f"{where}.name: one of {', '.join(classes)}, or an import path such as `package.module:Name`, is "
                f"expected. Received: `{name}`. {_cure(name, classes, '')}".rstrip()
            )
        return classes[name]

    def _imported(self, path: str, where: str) -> type[T]:
        found = import_object(path, f"{where}.name")
        if not (isinstance(found, type) and issubclass(found, self._base)):
            raise SpecError(
                f"{where}.name: a subclass of `{self._base.__module__}.{self._base.__name__}` is expected. Received: "
                f"`{path}`, which is {found!r}."
            )
        return found


def _check_type(cls: type[Any], setting: str, value: Any, where: str) -> None:
    """Raises a SpecError unless a value has the type that the constructor says, if it says one."""
    function = cls.__init__  # type: ignore[misc]
    annotations = {setting: function.__annotations__[setting]} if setting in function.__annotations__ else {}
    try:
        hint = get_type_hints(SimpleNamespace(__annotations__=annotations), function.__globals__).get(setting, Any)
    except NameError as error:
        raise SpecError(
            f"{where}: a type that can be resolved is expected in the constructor of `{cls.__name__}`. Received: "
            f"{error}. Import the type where the class is defined, not under TYPE_CHECKING alone."
        ) from error
    try:
        # as JSON: a list of a YAML file is what a constructor calls a tuple
        adapter: TypeAdapter[Any] = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
        adapter.validate_json(json.dumps(value, allow_nan=False), strict=True)
    except ValidationError as error:
        problem = error.errors()[0]
        place = "".join(f"[{part}]" for part in problem["loc"] if isinstance(part, int))
        raise SpecError(f"{where}{place}: {problem['msg']}. Received: {problem['input']!r}.") from error
    except ValueError as error:
        raise SpecError(f"{where}: finite numbers are expected. Received: {value!r}.") from error


def _cure(name: str, known: Iterable[str], otherwise: str) -> str:
    near = difflib.get_close_matches(name, list(known), 1)
    return f"Did you mean `{near[0]}`?" if near else otherwise
