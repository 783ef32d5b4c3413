"""What may be said to a tenant a second time: by its words, and where it calls a function, by what that is."""

import re

from herder_warm.within import answer
from herder_warm.words import COMMENT

# What leaves nothing, where it is all that is said and calls nobody.
READS = re.compile(
    r"\(*\s*(?:(?:select|values|table)\b(?!.*\binto\b)|with\b(?!.*\b(?:into|insert|update|delete|merge)\b)|explain\b(?!.*\banaly[sz]e\b))",
    re.IGNORECASE | re.DOTALL,
)
# What may be said again.
AGAIN = re.compile(
    r"(?:show|set|reset|lock|analyze|vacuum|reindex|refresh|comment|notify|listen|unlisten|discard|checkpoint)\b"
    r"|(?:begin|start|savepoint|release|rollback|abort)\b"
    r"|(?:create|drop)\b[^'$]*?\bif\s+(?:not\s+)?exists\b|create\s+or\s+replace\b"
    r"|alter\s+type\b[^'$]*?\badd\s+value\s+if\s+not\s+exists\b",
    re.IGNORECASE | re.DOTALL,
)
# What is no word of the statement itself: comments, and texts.
TEXTS = re.compile(rf"{COMMENT}|\$(\w*)\$.*?\$\1\$|\b[eE]'(?:[^'\\]|\\.)*'|'[^']*'", re.DOTALL)
CALLS = re.compile(r'(?:"((?:[^"]|"")+)"|([\w$]+))\s*\(')
OWN = (
    "select exists (select from pg_catalog.pg_proc where provolatile = 'v' and proname in ({})"
    " and (pronamespace <> 'pg_catalog'::pg_catalog.regnamespace or proname ~ '^(setval|lowrite|lo_.*)$'))"
)


def bare_of(words):
    """Without comments, and with empty texts."""
    return TEXTS.sub(lambda found: "''" if found[0][0] in "$'eE" else " ", words).strip().rstrip("; ")


def is_harmless(connection, bare):
    """Whether it is one statement that leaves nothing, or may be said again."""
    if ";" in bare:
        return False
    return AGAIN.match(bare) is not None or READS.match(bare) is not None and not calls_own(connection, bare)


def calls_own(connection, bare):
    """Whether it calls a function that is somebody's own and may write, or one of the server's that does."""
    names = {quoted.replace('""', '"') or name.lower() for quoted, name in CALLS.findall(bare)}
    if not names:
        return False
    literals = ", ".join("'" + name.replace("'", "''") + "'" for name in sorted(names))
    return answer(connection, OWN.format(literals))
