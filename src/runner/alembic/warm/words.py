"""Pieces of SQL."""

NAME = r'(?:"(?:[^"]|"")+"|[^\W\d][\w$]*)'
# Each text is one in one way only: with two, a file that begins with many of them would be tried in all combinations.
COMMENT = r"(?:--[^\n]*\n|/\*[^*]*\*+(?:[^/*][^*]*\*+)*/)"
REMARK = rf"(?:\s|{COMMENT})"


def literal(text):
    return "'{}'".format(text.replace("'", "''"))
