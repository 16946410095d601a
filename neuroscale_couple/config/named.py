"""Parts that the configuration names: ours by a short name, the user's own as `package.module:Class`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from neuroscale_couple.errors import ConfigError, NeuroscaleError


def make(key: str, name: str, known: Mapping[str, str], contract: type, *given: Any) -> Any:
    """Make the part that a name stands for, by calling its class, or a function, with what is given.

    key: of the configuration, for messages; known: our names -> package.module:Class
    Raises: ConfigError if the name is unknown, cannot be imported or called, or does not derive from the contract.
    """
    factory = _find(key, name, known)
    if isinstance(factory, type) and not issubclass(factory, contract):
        raise _foreign(key, name, contract)
    try:
        made = factory(*given)
    except NeuroscaleError:
        raise
    except Exception as cause:
        kinds = ", ".join(type(one).__name__ for one in given)
        raise ConfigError(
            f"{key}: {name!r} cannot be made ({type(cause).__name__}: {cause}); it is called with ({kinds})"
        ) from cause
    if not isinstance(made, contract):
        raise _foreign(key, name, contract)
    return made


def _find(key: str, name: str, known: Mapping[str, str]) -> Any:
    module, _, attribute = known.get(name, name).partition(":")
    if not attribute:
        raise ConfigError(f"{key}: {name!r} is unknown; use one of {sorted(known)} or package.module:Class of your own")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as cause:
        raise ConfigError(f"{key}: cannot load {name!r} ({cause}); is it on the Python path?") from cause


def _foreign(key: str, name: str, contract: type) -> ConfigError:
    return ConfigError(f"{key}: {name!r} is not a {contract.__name__}; derive it from {contract.__module__}")
