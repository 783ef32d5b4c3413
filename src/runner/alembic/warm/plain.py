"""Whether a file of the user's is plain: whatever it does, it leaves nothing behind in its process.

Each file is run anew for each tenant, so what it keeps under names of its own goes with them. What stays is the world around it:
the modules and classes of others, `os.environ`, the interpreter. A plain file imports only what is listed here, changes only what
it has made itself, and reaches nothing by a name that could be anything's. Most files that `alembic revision` began are plain.
One that is not known to be plain is not: that costs each tenant a process of its own, and nothing else.
"""

import ast
import builtins
import collections
import datetime
import importlib
import inspect
import sys
import types
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
    "collections.abc": ALL,
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
    "sqlalchemy.exc": ALL,
    "sqlalchemy.ext": {"asyncio"},
    "sqlalchemy.ext.asyncio": ALL,
    "sqlalchemy.pool": ALL,
    "sqlalchemy.schema": ALL,
    "sqlalchemy.sql": ALL,
    "sqlalchemy.sql.expression": ALL,
    "sqlalchemy.types": ALL,
    "textwrap": ALL,
    "typing": ALL,
    "uuid": ALL,
}
# Whatever is asked of these is made for whoever asks: the tenant's own configuration, a function of SQL, a type.
GENEROUS = ("__future__", "alembic.context", "alembic.op", "collections.abc", "typing")
FREE = object()  # What they give.
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
CHANGES = set("add append clear discard extend insert pop popitem remove reverse setdefault sort update".split())
OF_TABLES = {"insert", "update"}
# What leads from the tenant's connection to what all connections share.
FAR_REACHING = set(
    "addFilter addHandler dbapi dispatch dispatch_for implementation_for import_dbapi listen listens_for loaded_dbapi removeFilter"
    " removeHandler setLevel".split()
)


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
        if given.keys() & (self.imported.keys() | MAKERS):
            raise NotPlain("a name with two meanings")
        self.names = given.keys()
        self.of_tables = set()

    def visit(self, node):
        if isinstance(node, (ast.ClassDef, getattr(ast, "Match", ()))) or getattr(node, "decorator_list", None):
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
        if not is_read and (node.attr != "default_schema_name" or self.is_imported(node)):
            raise NotPlain(node.attr)
        if node.attr not in CHANGES or node not in self.of_tables and not self.is_made(node.value):
            check_name(node.attr)
        self.visit(node.value)

    def visit_Call(self, node):
        if isinstance(node.func, ast.Attribute) and node.func.attr in OF_TABLES and not node.args and not node.keywords:
            self.of_tables.add(node.func)
        self.generic_visit(node)

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
        if found is not FREE and not isinstance(found, HARMLESS):
            raise NotPlain(first)
        return True

    def is_imported(self, node):
        return chain(node)[0] in self.imported


def chain(node):
    """The first name of `a.b.c`, if it is one, and the others."""
    names = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    return getattr(node, "id", None), names


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
    if found is FREE or is_generous(found):
        check_name(name)
        return FREE
    if not inspect.ismodule(found):
        check_name(name)
        return look_up(found, name)
    known = next(known for known in IMPORTS if sys.modules.get(known) is found)
    if name.startswith("_") or IMPORTS[known] is not ALL and name not in IMPORTS[known]:
        raise NotPlain(name)
    inner = look_up(found, name)
    return module_named(known + "." + name) if inspect.ismodule(inner) else inner


def look_up(found, name):
    try:
        return getattr(found, name)
    except Exception:
        raise NotPlain(name) from None


def is_generous(found):
    return found is sqlalchemy.func or inspect.ismodule(found) and found.__name__ in GENEROUS


def check_name(name):
    if name.startswith(("_", "register")) or name in CHANGES or name in FAR_REACHING:
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
        return getattr(value.func, "id", None) in MAKERS or getattr(value.func, "attr", None) in METHODS_THAT_MAKE
    return isinstance(value, NEW)
