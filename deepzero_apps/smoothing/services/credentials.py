"""Headers whose secrets stand in the environment, and nowhere else.

A header's value may hold ``${NAME}``. The name is all that a file, a fingerprint or a message
ever contains; the value is read when the connection is opened. Headers that by their name carry
a credential must take it from there: apart from ``${NAME}`` they may hold a scheme, such as
``Bearer``, and no more.
"""

__all__ = ["check_header", "check_query", "is_literal", "resolved"]

import re
from collections.abc import Mapping
from urllib.parse import parse_qsl

from deepzero_apps.smoothing.answers import ClassifierError

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_SENSITIVE = re.compile(
    r"auth|cookie|token|secret|passw|credential|signature|session|bearer|(^|[-_])(key|pwd|sig)|apikey",
    re.IGNORECASE,
)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z_-]{0,15}[ =])?")
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


def check_header(name: str, value: str) -> None:
    """Refuses a header that cannot be sent, or that holds a literal credential.

    Args:
        name: The header's name.
        value: Its value, with ``${NAME}`` where the environment is to be read.

    Raises:
        ValueError: If it is refused. The message never holds the value.
    """
    if not _NAME.fullmatch(name):
        raise ValueError("headers must have names of letters, digits and -, got another one")
    rest, variables = _VARIABLE.subn("", value)
    if not _sendable(rest):
        raise ValueError(f"header {name} must be printable ASCII, got another character")
    if _SENSITIVE.search(name) and not (variables and _SCHEME.fullmatch(rest)):
        raise ValueError(
            f"header {name} must take its credential from the environment, got a literal value; "
            "export it as a variable, and write ${VARIABLE}, or Bearer ${VARIABLE}, here"
        )


def check_query(query: str) -> None:
    """Refuses a url's query that by its names carries a credential.

    Args:
        query: What follows the question mark.

    Raises:
        ValueError: If a name in it is that of a credential. The message never holds the value.
    """
    for name, _ in parse_qsl(query, keep_blank_values=True):
        if _SENSITIVE.search(name):
            raise ValueError(
                f"url must hold no credential, got {name} in its query; send it as a header "
                "whose value is ${VARIABLE}"
            )


def is_literal(name: str, value: str) -> bool:
    """Says whether a header is sent as it stands and is no credential."""
    return not _VARIABLE.search(value) and not _SENSITIVE.search(name)


def resolved(headers: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, str]:
    """Puts the environment's values in their places.

    Args:
        headers: Names and values, with ``${NAME}`` where the environment is to be read.
        environment: The variables.

    Returns:
        The headers to be sent. Keep them out of everything that is printed or stored.

    Raises:
        ClassifierError: If a variable is missing, empty, or holds what a header cannot.
    """
    return {name: _filled(name, value, environment) for name, value in headers.items()}


def _filled(header: str, value: str, environment: Mapping[str, str]) -> str:
    for variable in _VARIABLE.findall(value):
        content = environment.get(variable, "")
        if not content:
            raise ClassifierError(
                f"header {header} needs the environment variable {variable}, which is not set or "
                f"empty; export {variable} first"
            )
        if not _sendable(content) or content != content.strip():
            raise ClassifierError(
                f"header {header} needs the environment variable {variable} to be printable ASCII "
                "without spaces around it; a line break at its end is a common cause"
            )
    return _VARIABLE.sub(lambda match: environment[match[1]], value)


def _sendable(text: str) -> bool:
    return text.isascii() and (text.isprintable() or not text)
