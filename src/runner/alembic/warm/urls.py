"""From libpq's words to those of SQLAlchemy and its drivers."""

import os
import re
from urllib.parse import parse_qsl, quote, unquote, urlencode


def sqlalchemy_url(url, scheme):
    """Rewrites a libpq URL for SQLAlchemy: its scheme, clean percent-encoding, and no options that only sqlx knows.

    `sslmode`, `options` and the like stay, also for asyncpg, which takes none of them: env.py may swap the driver, so
    they are translated at the last moment, in `limit_connection`.
    """
    _, _, rest = url.partition("://")
    rest, _, query = rest.partition("?")
    authority, slash, path = rest.partition("/")
    userinfo, at, hosts = authority.rpartition("@")
    user, colon, password = userinfo.partition(":")
    # libpq splits at the last `@`, SQLAlchemy at the first: encoded, there is only one.
    userinfo = quote(unquote(user), safe="") + colon + quote(unquote(password), safe="")
    pairs, options = [], []
    for key, value in parse_qsl(query, keep_blank_values=True):
        bracket = re.fullmatch(r"options\[(.+)\]", key)
        if bracket:
            options.append("-c {}={}".format(bracket.group(1), escape_option(value)))
        elif key == "options":
            options.append(value)
        elif key != "statement-cache-capacity":
            pairs.append(({"ssl-mode": "sslmode", "ssl-ca": "sslrootcert"}.get(key, key.replace("-", "")), value))
    if options:
        pairs.append(("options", " ".join(options)))
    query = urlencode(pairs, quote_via=quote)
    return scheme + "://" + userinfo + at + hosts + slash + path + ("?" + query if query else "")


def escape_option(value):
    """Escapes a value for libpq's `options`, which splits at spaces."""
    return value.replace("\\", "\\\\").replace(" ", "\\ ")


# libpq's words that asyncpg has no counterpart for; without them the connection is the same or a little less watched.
LIBPQ_ONLY = (
    "channel_binding client_encoding fallback_application_name gssdelegation gssencmode keepalives keepalives_count"
    " keepalives_idle keepalives_interval load_balance_hosts requirepeer require_auth sslcompression sslsni"
    " tcp_user_timeout"
).split()
# asyncpg understands these in a DSN, though not as arguments: a DSN that holds nothing else hands them over.
DSN_ONLY = (
    "sslcert sslcrl sslkey sslmode sslnegotiation sslpassword sslrootcert ssl_max_protocol_version"
    " ssl_min_protocol_version"
).split()


def adapt_for_asyncpg(arguments, application_name, settings):
    """Turns libpq's connection words, which asyncpg refuses, into asyncpg's; and adds label and limits."""
    server_settings = dict(arguments.get("server_settings") or {})
    if "options" in arguments:
        # The server parses it, as it does for libpq.
        server_settings["options"] = arguments.pop("options")
    arguments.pop("application_name", None)
    for word in LIBPQ_ONLY:
        arguments.pop(word, None)
    if "dbname" in arguments:
        arguments["database"] = arguments.pop("dbname")
    if "connect_timeout" in arguments:
        # libpq's 0 means "no limit"; so does asyncpg's None.
        arguments["timeout"] = float(arguments.pop("connect_timeout")) or None
    for_dsn = [(word, arguments.pop(word)) for word in DSN_ONLY if word in arguments]
    if for_dsn and "dsn" not in arguments and "ssl" not in arguments:
        arguments["dsn"] = "postgresql://?" + urlencode(for_dsn)
    server_settings.update(settings, application_name=application_name)
    arguments["server_settings"] = server_settings


def adapt_for_libpq(arguments, application_name, settings):
    """Adds label and limits in libpq's words. A later `-c` wins over an earlier one, so the given options stay."""
    given = arguments.get("options") or os.environ.get("PGOPTIONS") or ""
    limits = ["-c {}={}".format(name, escape_option(value)) for name, value in settings.items()]
    arguments["options"] = " ".join(filter(None, [given] + limits))
    arguments["application_name"] = application_name
