"""The compiled code of the user's files. Python keeps it on disk; here nothing is written there, so each child would compile each
revision anew. What is kept counts only for a file that has the very same text.
"""

import ast
import os
from importlib.machinery import SourceFileLoader, SourcelessFileLoader

from herder_warm.plain import is_plain

kept = {}  # Text, code and whether it is plain, by file.
used = set()  # The files whose kept code was run of late,
doubtful = set()  # and those that were run and are not known to be plain.
load_code, load_compiled = SourceFileLoader.get_code, SourcelessFileLoader.get_code


def install():
    SourceFileLoader.get_code = get_code
    SourcelessFileLoader.get_code = get_compiled


def forget():
    """Begins anew to note what is run."""
    used.clear()
    doubtful.clear()


def get_code(loader, name):
    file = os.path.abspath(loader.path)
    source, code, plain = kept.get(file, (None, None, False))
    is_same = source is not None and source == loader.get_data(loader.path)
    if is_same:
        used.add(file)
    if not is_same or not plain:
        doubtful.add(file)
    return code if is_same else load_code(loader, name)


def get_compiled(loader, name):
    doubtful.add(os.path.abspath(loader.path))
    return load_compiled(loader, name)


def are_as_used():
    """Whether the files that were run of late have the same text still."""
    return all(text_of(file) == kept[file][0] for file in used)


def text_of(file):
    try:
        with open(file, "rb") as opened:
            return opened.read()
    except OSError:
        return None


def check(path, source):
    """Compiles a file that is not kept, for the sake of what is wrong in it."""
    if kept.get(os.path.abspath(path), (None,))[0] != source:
        compile(source, path, "exec", dont_inherit=True)


def compile_all(files):
    """Compiles what children have run, for those to come. Runs none of it."""
    for file in files:
        source = text_of(file)
        if source is None or kept.get(file, (None,))[0] == source:
            continue
        try:
            tree = compile(source, file, "exec", ast.PyCF_ONLY_AST, dont_inherit=True)
            kept[file] = source, compile(tree, file, "exec", dont_inherit=True), is_plain(tree)
        except (SyntaxError, ValueError, RecursionError):
            kept.pop(file, None)
