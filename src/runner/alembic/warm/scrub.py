"""Passwords stay here."""

import json
import re
from urllib.parse import quote, quote_plus, unquote, unquote_plus


def passwords(url):
    """The passwords of a URL, as they are written there: its user's, and those among its parameters."""
    rest, _, query = url.partition("://")[2].partition("?")
    yield rest.partition("/")[0].rpartition("@")[0].partition(":")[2]
    for pair in query.split("&"):
        name, _, value = pair.partition("=")
        if name in ("password", "sslpassword"):
            yield value


class Scrubber:
    """Takes the current tenant's password out of every text that leaves, in each form in which it may appear."""

    def __init__(self, *urls):
        forms = set()
        for raw in (raw for url in urls for raw in passwords(url)):
            plain = unquote(raw)
            for form in (raw, plain, unquote_plus(raw), quote(plain, safe=""), quote(plain, safe=" +"), quote_plus(plain)):
                forms.update((form, form.replace("%", "%%")))
                forms.update(written(form)[1:-1] for written in (repr, ascii, json.dumps))
        # Longest first: a short form may be a part of a longer one.
        self.forms = sorted(filter(None, forms), key=len, reverse=True)
        self.quoted = None

    def __call__(self, value):
        if isinstance(value, dict):
            return {key: self(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self(item) for item in value]
        if not isinstance(value, str):
            return value
        # Postgres stores no NUL, and these texts go into a table.
        value = value.replace("\0", "")
        for form in self.forms:
            value = value.replace(form, "***")
        if self.forms and "\\" in value:
            value = self.unquoted(value)
        # Other URLs too: env.py may know a catalog database.
        value = re.sub(r"://([^\s:/@]*):[^\s@]*@", r"://\1:***@", value)
        return re.sub(r"([?&](?:ssl)?password=)[^\s&'\"]+", r"\1***", value)

    def unquoted(self, value):
        """Without the password where it has backslashes before some of its characters: by a shell, by JSON in JSON."""
        if self.quoted is None:
            self.quoted = re.compile("|".join("".join(r"\\*" + re.escape(c) for c in form) for form in self.forms))
        return self.quoted.sub("***", value)
