"""The broker where `mcpguard run` is root's already: a copy of that process, for which nothing is started or imported anew.

Between two processes of root there is no line to cross: what could have been made of the one could be made of the other. Still
the copy lets go of what an isolated interpreter would not have: other folders to import from, and the caller's descriptors.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

FAILED = 125


def be_broker(connection: int) -> NoReturn:
    """In the copy: serve the process that it was copied from.

    Args:
        connection: descriptor of the socket to it.
    """
    code = FAILED
    try:
        _isolate()
        from mcpguard.broker.__main__ import converse
        from mcpguard.kernel.privileges import close_from

        close_from(3, {connection})
        converse(connection, os.getuid())
        code = 0
    except BaseException as error:
        sys.stderr.write(f"mcpguard: the broker ended: {type(error).__name__}: {error}\n")
    finally:
        os._exit(code)


def _isolate() -> None:
    """Import from here on as under `python -I -S`: the standard library, this package, and by nobody else's rules."""
    library = os.path.dirname(os.__file__)
    archive = f"{os.path.dirname(library)}/python{sys.version_info[0]}{sys.version_info[1]}.zip"
    own = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    sys.path[:] = [own, *(path for path in (archive, library, f"{library}/lib-dynload") if path in sys.path)]
    sys.meta_path[:] = [finder for finder in sys.meta_path if _is_pythons_own(finder)]
    sys.path_hooks[:] = [hook for hook in sys.path_hooks if _is_pythons_own(hook)]


def _is_pythons_own(part: object) -> bool:
    return str(getattr(part, "__module__", "")).startswith(("_frozen_importlib", "zipimport"))
