"""The compiled code of the user's files. Python keeps it on disk; here nothing is written there, so each child would compile each
revision anew. What is kept counts only for a file that has the very same text.
"""

from importlib.machinery import SourceFileLoader

kept = {}  # Text and code, by file.
load_code = SourceFileLoader.get_code


def install():
    SourceFileLoader.get_code = get_code


def get_code(loader, name):
    source, code = kept.get(loader.path, (None, None))
    if source is not None and source == loader.get_data(loader.path):
        return code
    return load_code(loader, name)


def compile_all(files):
    """Compiles what children have loaded, for those to come. Runs none of it."""
    for file in files:
        try:
            with open(file, "rb") as opened:
                source = opened.read()
            if kept.get(file, (None,))[0] != source:
                kept[file] = source, compile(source, file, "exec", dont_inherit=True)
        except (OSError, SyntaxError, ValueError):
            kept.pop(file, None)
