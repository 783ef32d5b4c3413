"""Whether a file of the user's is plain: whatever it does, it leaves nothing behind in its process.

Each file is run anew for each tenant, so what it keeps under names of its own goes with them. What stays is the world around it:
the modules and classes of others, `os.environ`, the interpreter. A plain file imports only what is listed here, changes only what
it has made itself, and reaches nothing by a name that could be anything's. Most files that `alembic revision` began are plain.
One that is not known to be plain is not: that costs each tenant a process of its own, and nothing else.
"""

import ast
import builtins
import collections
import collections.abc
import configparser
import datetime
import functools
import importlib
import inspect
import logging.config
import os
import re
import sys
import types
import typing
import uuid

import sqlalchemy

ALL = None
# What may be imported, and which of its names.
IMPORTS = {
    "__future__": ALL,
    "alembic": {"context", "op"},
    "alembic.context": ALL,
    "alembic.op": ALL,
    "asyncio": {"run"},
    "collections.abc": set(collections.abc.__all__),
    "datetime": ALL,
    "decimal": {"Decimal"},
    "json": ALL,
    "logging": {"config", "getLogger"},
    "logging.config": {"fileConfig"},
    "os": {"environ", "getenv", "path"},
    "os.path": ALL,
    "pathlib": {"Path"},
    "re": ALL,
    "sqlalchemy": ALL,
    "sqlalchemy.dialects": ALL,
    "sqlalchemy.dialects.postgresql": ALL,
    "sqlalchemy.engine": ALL,
    "sqlalchemy.engine.reflection": {"Inspector"},
    "sqlalchemy.engine.url": {"URL", "make_url"},
    "sqlalchemy.exc": ALL,
    "sqlalchemy.ext": {"asyncio"},
    "sqlalchemy.ext.asyncio": {"AsyncConnection", "AsyncEngine", "async_engine_from_config", "create_async_engine"},
    "sqlalchemy.orm": {"Session"},
    "sqlalchemy.pool": ALL,
    "sqlalchemy.schema": ALL,
    "sqlalchemy.sql": ALL,
    "sqlalchemy.sql.expression": ALL,
    "sqlalchemy.types": ALL,
    "textwrap": ALL,
    "typing": set(typing.__all__) - {"get_type_hints"},
    "urllib.parse": {"quote", "quote_plus", "unquote", "unquote_plus"},
    "uuid": ALL,
}
# What is asked of these is made for whoever asks: the tenant's own configuration and operations, a function of SQL, a type.
GENEROUS = ("__future__", "alembic.context", "alembic.op", "collections.abc", "typing")
FREE = object()  # What they give.
# Methods of classes. Others may change the class.
OF_CLASSES = {"create", "from_engine", "now", "today", "utcnow", "fromisoformat", "fromtimestamp", "strptime", "combine", "fromkeys", "cwd"}
# What may be used of all others: what can be called, or what nobody can change.
HARMLESS = (
    type, types.FunctionType, types.BuiltinFunctionType, types.MethodType, type(None), bool, int, float, str, bytes, uuid.UUID,
    datetime.tzinfo, datetime.timedelta, datetime.date, datetime.time,
)  # fmt: skip
BUILTINS = frozenset(
    "abs all any bool bytes callable chr dict divmod enumerate filter float format frozenset hasattr hash int isinstance issubclass"
    " iter len list map max min next open ord pow print range repr reversed round set slice sorted str sum tuple zip __file__"
    " __name__".split()
).union(name for name, value in vars(builtins).items() if isinstance(value, type) and issubclass(value, BaseException))
# Functions and methods that hand out something new.
MAKERS, METHODS_THAT_MAKE = {"dict", "list", "set", "sorted"}, {"copy", "get_section", "get_x_argument"}
# Methods that change their object. Those of SQLAlchemy's tables do not, and come without arguments.
CHANGES = set(
    "add append appendleft clear difference_update discard extend extendleft insert intersection_update move_to_end pop popitem popleft"
    " put remove reverse rotate send setdefault sort subtract symmetric_difference_update throw update".split()
)
OF_TABLES = {"insert", "update"}
# What leads from the tenant's connection to what all connections share, and from a logger to what all of them do.
FAR_REACHING = set(
    "argument_for dbapi dispatch dispatch_for implementation_for import_dbapi ischema_names listen listens_for loaded_dbapi manager"
    " preparer putenv stderr stdout".split()
)
CAMELS = re.compile("(add|remove|set)[A-Z]")
# Names that stand for what Python has built in, wherever a file gives them another meaning besides.
TAKEN = frozenset(vars(builtins)) - BUILTINS - {"copyright", "credits", "exit", "id", "license", "quit"}


def is_plain(tree):
    try:
        File(tree).visit(tree)
        return True
    except (NotPlain, RecursionError):
        return False


class NotPlain(Exception):
    """With what is not."""


class File(ast.NodeVisitor):
    def __init__(self, tree):
        nodes = list(ast.walk(tree))
        self.imported = {}
        for node in nodes:
            for name, found in imports(node):
                if self.imported.setdefault(name, found) is not found:
                    raise NotPlain(name)
        given = values_of(nodes)
        self.made = {name for name, values in given.items() if all(map(is_new, values))}
        if given.keys() & (self.imported.keys() | MAKERS | TAKEN) or any(name.startswith("__") for name in given):
            raise NotPlain("a name with two meanings")
        self.names = given.keys()
        self.of_tables, self.of_ini = set(), set()

    def visit(self, node):
        # A generator that is left open goes on when it is collected, whoever's turn that is.
        if isinstance(node, NOWHERE) or getattr(node, "decorator_list", None):
            raise NotPlain(node.lineno)
        super().visit(node)

    def visit_Name(self, node):
        if node.id in self.imported:
            self.take(node)
        elif node.id not in self.names and node.id not in BUILTINS and (hasattr(builtins, node.id) or node.id.startswith("__")):
            raise NotPlain(node.id)

    def visit_Attribute(self, node):
        is_read = isinstance(node.ctx, ast.Load)
        if is_read and self.take(node):
            return
        # Alembic's cookbook sets this one, of an engine that env.py has made.
        is_of_dialect = node.attr == "default_schema_name" and getattr(node.value, "attr", None) == "dialect"
        if not is_read and (not is_of_dialect or chain(node)[0] in self.imported):
            raise NotPlain(node.attr)
        if node.attr not in CHANGES or node not in self.of_tables and not self.is_made(node.value):
            check_name(node.attr)
        self.visit(node.value)

    def visit_Call(self, node):
        if isinstance(node.func, ast.Attribute) and node.func.attr in OF_TABLES and not node.args and not node.keywords:
            self.of_tables.add(node.func)
        # The configuration that `is_plain_ini` looks at.
        if len(node.args) == 1 and getattr(node.args[0], "attr", None) == "config_file_name":
            self.of_ini.add(node.func)
        self.generic_visit(node)

    def visit_Compare(self, node):
        """`"NAME" in os.environ` only reads."""
        if not all(isinstance(operator, (ast.In, ast.NotIn)) for operator in node.ops):
            return self.generic_visit(node)
        for part in [node.left] + node.comparators:
            if ast.dump(part) != ENVIRON:
                self.visit(part)

    def visit_Subscript(self, node):
        is_read = isinstance(node.ctx, ast.Load)
        if not is_read and not self.is_made(node.value):
            raise NotPlain(node.lineno)
        if is_read and ast.dump(node.value) == ENVIRON and "os" in self.imported:
            self.visit(node.slice)
        else:
            self.generic_visit(node)

    def visit_AugAssign(self, node):
        if isinstance(node.target, ast.Name) and not self.is_made(node.target):
            raise NotPlain(node.lineno)
        self.generic_visit(node)

    def is_made(self, node):
        return isinstance(node, ast.Name) and node.id in self.made

    def take(self, node):
        """Looks at `a.b.c` where `a` was imported. Whether it was."""
        first, names = chain(node)
        if first not in self.imported:
            return False
        found = self.imported[first]
        for name in names:
            found = step(found, name)
        if found is not FREE and not isinstance(found, HARMLESS) or found is logging.config.fileConfig and node not in self.of_ini:
            raise NotPlain(first)
        return True


def chain(node):
    """The first name of `a.b.c`, if it is one, and the others."""
    names = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    return getattr(node, "id", None), names


NOWHERE = (ast.ClassDef, ast.Yield, ast.YieldFrom) + ((ast.Match,) if hasattr(ast, "Match") else ())
ENVIRON = ast.dump(ast.parse("os.environ", mode="eval").body)


def imports(node):
    """The names that a statement imports, with what they stand for."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            # `import a.b` binds `a`, `import a.b as c` binds `a.b`.
            module, first = module_named(alias.name), module_named(alias.name.partition(".")[0])
            yield (alias.asname, module) if alias.asname else (alias.name.partition(".")[0], first)
    elif isinstance(node, ast.ImportFrom):
        if node.level:
            raise NotPlain(node.lineno)
        for alias in node.names:
            if alias.name == "*":
                raise NotPlain(node.lineno)
            yield alias.asname or alias.name, step(module_named(node.module), alias.name)


def module_named(name):
    if name not in IMPORTS:
        raise NotPlain(name)
    try:
        return importlib.import_module(name)
    except ImportError:
        raise NotPlain(name) from None


def step(found, name):
    """What `found.name` is."""
    if found is FREE or found is sqlalchemy.func:
        check_name(name)
        return FREE
    if not inspect.ismodule(found):
        check_name(name)
        inner = look_up(found, name)
        if found is not os.environ and not (isinstance(found, type) and (name in OF_CLASSES or not callable(inner))):
            raise NotPlain(name)
        return inner
    known = next(known for known in IMPORTS if sys.modules.get(known) is found)
    if name.startswith("_") or IMPORTS[known] is not ALL and name not in IMPORTS[known]:
        raise NotPlain(name)
    if known in GENEROUS:
        check_name(name)
    # What Alembic offers there is made when it begins with a tenant.
    inner = getattr(found, name, FREE) if known in GENEROUS else look_up(found, name)
    if inspect.ismodule(inner):
        return module_named(known + "." + name)
    if known.startswith("alembic") and isinstance(inner, type):
        raise NotPlain(name)
    return FREE if known in GENEROUS else inner


def look_up(found, name):
    try:
        return getattr(found, name)
    except Exception:
        raise NotPlain(name) from None


def check_name(name):
    if name.startswith("_") or "register" in name or name in CHANGES or name in FAR_REACHING or CAMELS.match(name):
        raise NotPlain(name)


def values_of(nodes):
    """All values that each name is given in a file, with None for one that does not say which."""
    given = {}
    for node in nodes:
        for target in getattr(node, "targets", None) or [getattr(node, "target", None)]:
            if isinstance(node, (ast.Assign, ast.AnnAssign)):
                given[target] = node.value
            elif isinstance(node, ast.AugAssign):
                given[target] = node
    values = collections.defaultdict(list)
    for node in nodes:
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            values[node.id].append(given.get(node))
        elif isinstance(node, ast.arg):
            values[node.arg].append(None)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ExceptHandler)) and node.name:
            values[node.name].append(None)
    return values


NEW = (
    ast.Constant, ast.JoinedStr, ast.Dict, ast.List, ast.Set, ast.Tuple, ast.DictComp, ast.ListComp, ast.SetComp, ast.BinOp,
    ast.UnaryOp, ast.Compare, ast.AugAssign,
)  # fmt: skip


def is_new(value):
    """Whether a value is the file's own: nobody else can see it change."""
    if isinstance(value, ast.BoolOp):
        return all(map(is_new, value.values))
    if isinstance(value, ast.Call):
        # `get_section` hands out its default as it is.
        defaults = value.args[1:] + [keyword.value for keyword in value.keywords]
        is_made = getattr(value.func, "attr", None) in METHODS_THAT_MAKE and all(map(is_new, defaults))
        return is_made or getattr(value.func, "id", None) in MAKERS
    return isinstance(value, NEW)


def is_plain_ini(path):
    """Whether what a configuration says about logging, which `fileConfig` runs, leaves nothing behind either."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            return is_plain_configuration(file.read())
    except (OSError, ValueError):
        return False


@functools.lru_cache(maxsize=8)
def is_plain_configuration(text):
    parser = configparser.RawConfigParser(strict=False)
    try:
        parser.read_string(text)
        sections = [parser[name] for name in parser.sections() if name.startswith(("handler_", "formatter_"))]
        trees = [ast.parse(section[name], mode="eval") for section in sections for name in ("args", "kwargs") if name in section]
    except (configparser.Error, SyntaxError, ValueError):
        return False
    classes = [section["class"] for section in sections if "class" in section]
    arguments = [node for tree in trees for node in ast.walk(tree.body)]
    return all(CLASSES.fullmatch(name) for name in classes) and all(map(is_argument, arguments))


CLASSES = re.compile(r"(logging\.)?((File|Null|Stream)Handler|Formatter)")


def is_argument(node):
    if isinstance(node, ast.Name):
        return node.id == "sys"
    if isinstance(node, ast.Attribute):
        return node.attr in ("stdout", "stderr")
    return isinstance(node, (ast.Constant, ast.Dict, ast.List, ast.Load, ast.Tuple))
