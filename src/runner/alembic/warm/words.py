"""Pieces of SQL."""

NAME = r'(?:"(?:[^"]|"")+"|[^\W\d][\w$]*)'
REMARK = r"(?:\s|--[^\n]*\n|/\*.*?\*/)"


def literal(text):
    return "'{}'".format(text.replace("'", "''"))
