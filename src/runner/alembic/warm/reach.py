"""The files whose code may decide what a migration does, beside the revisions: a proof counts for as long as they are the same."""

import ast
import os
import re
import sys

from herder_warm import own
from herder_warm.own import file_of, is_known

LATER = re.compile(rb"^[ \t]+(from|import)[ \t]", re.MULTILINE)


def files(env):
    """Those of env.py, of all modules that are there, and of those that these import later: while they run, online, say."""
    found = {os.path.abspath(env): ""}
    for name, module in list(sys.modules.items()):
        file = os.path.abspath(file_of(module) or "?")
        if name not in own.inherited and file.endswith(".py") and not is_known(file):
            found[file] = name if is_package(file) else name.rpartition(".")[0]
    waiting, loaded, paths = list(found.items()), set(found), {}
    while waiting:
        file, package = waiting.pop()
        for name in imports(file, package, only_later=file in loaded):
            if name not in paths:
                paths[name] = path_of(name)
            other = paths[name]
            if other is not None and other not in found and not is_known(other):
                found[other] = name if is_package(other) else name.rpartition(".")[0]
                waiting.append((other, found[other]))
    return sorted(found)


def is_package(file):
    return os.path.basename(file) == "__init__.py"


def imports(file, package, only_later):
    """The names that a file imports, and those that these may be a part of. What it imports when it begins is there already, if it is."""
    try:
        with open(file, "rb") as opened:
            source = opened.read()
        if only_later and not LATER.search(source):
            return set()
        tree = ast.parse(source)
    except (Exception, MemoryError):  # What cannot be read or parsed imports nothing.
        return set()
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join(parent + ([node.module] if node.module else []))
            names.update([base] + [base + "." + alias.name for alias in node.names])
    return {".".join(name.split(".")[:end]) for name in names for end in range(1, name.count(".") + 2)}


def path_of(name):
    """The file of a module, found as Python does it, and without running anything."""
    path = os.path.join(*name.split("."))
    for folder in (folder for folder in sys.path if isinstance(folder, str)):
        for file in (os.path.join(folder, path, "__init__.py"), os.path.join(folder, path + ".py")):
            if os.path.isfile(file):
                return os.path.abspath(file)
    return None
