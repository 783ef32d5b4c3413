"""What may be said to a tenant a second time: by its words, and where it calls a function, by what that is."""

import re

from herder_warm.within import answer

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
TEXTS = re.compile(r"\$(\w*)\$.*?\$\1\$|'[^']*'", re.DOTALL)
CALLS = re.compile(r'(?:"((?:[^"]|"")+)"|(\w+))\s*\(')
OWN = (
    "select exists (select from pg_catalog.pg_proc where provolatile = 'v' and pronamespace <> 'pg_catalog'::pg_catalog.regnamespace"
    " and proname in ({}))"
)


def is_harmless(connection, words):
    """Whether it is one statement that leaves nothing, or may be said again."""
    bare = TEXTS.sub("''", words).strip().rstrip(";")
    if ";" in bare:
        return False
    return AGAIN.match(bare) is not None or READS.match(bare) is not None and not calls_own(connection, bare)


def calls_own(connection, words):
    """Whether it calls a function that is somebody's own, and may write."""
    names = {quoted.replace('""', '"') or name.lower() for quoted, name in CALLS.findall(words)}
    if not names:
        return False
    literals = ", ".join("'" + name.replace("'", "''") + "'" for name in sorted(names))
    return answer(connection, OWN.format(literals))
