"""Where a revision goes on though a statement fails. A plan would not: it sends what comes behind only if all went well."""

import ast
import functools
import os

from herder_warm.codes import text_of
from herder_warm.own import is_known

TRIES = (ast.Try, getattr(ast, "TryStar", ast.Try))


def caught(frame):
    """The place where the user's code would catch the failure of what this frame's callers are about to say, if it would."""
    while frame is not None:
        code = frame.f_code
        # Behind it stands env.py, which ends for good where a revision fails.
        if code.co_name == "run_migrations" and frame.f_globals.get("__name__") == "alembic.runtime.migration":
            return None
        file = os.path.abspath(code.co_filename)
        if file.endswith(".py") and not code.co_filename.startswith("herder_warm/") and not is_known(file):
            for place, first, last in catching(text_of(file) or b""):
                if first <= frame.f_lineno <= last:
                    return "{}, line {}".format(os.path.basename(file), place)
        frame = frame.f_back
    return None


@functools.lru_cache(maxsize=100)
def catching(source):
    """The lines of a file from which an error may not come out: where that is said, the first and the last of them."""
    try:
        nodes = [node for node in ast.walk(ast.parse(source)) if catches(node)]
    except (SyntaxError, ValueError, RecursionError):
        return []
    return [(node.lineno, node.body[0].lineno, node.body[-1].end_lineno) for node in nodes]


def catches(node):
    if isinstance(node, TRIES):
        return any(not isinstance(handler.body[-1], ast.Raise) for handler in node.handlers)
    if isinstance(node, ast.With):
        calls = [item.context_expr.func for item in node.items if isinstance(item.context_expr, ast.Call)]
        return any("suppress" in (getattr(call, "id", None), getattr(call, "attr", None)) for call in calls)
    return False
