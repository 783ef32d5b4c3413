"""The user's Alembic project."""

import configparser
import hashlib
import inspect
import os
import re
import sys
import traceback

import alembic
import sqlalchemy
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.script.revision import RevisionError, RevisionMap
from alembic.util import CommandError

from herder_warm import codes
from herder_warm.errors import Failure, config_hint, describe_error, env_hint, one_line


class Project:
    """An ini file with its revision files."""

    @classmethod
    def open(cls, ini, section):
        """The project as it is on disk. Changes into its folder, as its users do."""
        if not os.path.isfile(ini):
            alone = os.path.isfile(os.path.join(os.path.dirname(ini), "pyproject.toml"))
            hint = "`[runner] config` names Alembic's ini file" + (", or a pyproject.toml that has [tool.alembic]" if alone else "")
            raise Failure("config", "there is no {}".format(ini), hint)
        os.chdir(os.path.dirname(ini))
        return cls(ini, section)

    def __init__(self, ini, section):
        self.ini, self.section, self.folder = ini, section, os.path.dirname(ini)
        self.locations = []
        try:
            self.as_written = self.config()
            self.script = ScriptDirectory.from_config(self.as_written)
        except (CommandError, configparser.Error, ImportError) as error:
            raise Failure("config", one_line(error), config_hint(error))
        self.locations = [os.path.abspath(str(path)) for path in self.script._version_locations]
        # Read when env.py comes to them, as the alembic command does: it may have prepared something for them.
        self.script.revision_map = RevisionMap(self.checked_revisions)
        self.check_env()

    def config(self, **kwargs):
        """A fresh configuration, which env.py may change as it likes. Reads pyproject.toml where `alembic` would."""
        toml = os.path.join(self.folder, "pyproject.toml")
        if "toml_file" in inspect.signature(Config.__init__).parameters and os.path.isfile(toml):
            kwargs["toml_file"] = toml
        # An ini may be absent in a project that is configured by pyproject.toml alone.
        ini = None if self.ini == toml else self.ini
        return Config(ini, ini_section=self.section, **kwargs)

    def checked_revisions(self):
        """Alembic's revisions, less what it only warns about: a revision in two files, a parent in none."""
        by_id = {}
        for script in self.loaded_revisions():
            twin = by_id.setdefault(script.revision, script)
            if twin is not script:
                message = "revision {} is in two files: {} and {}"
                raise Failure("script", message.format(script.revision, self.relative(twin.path), self.relative(script.path)))
        for script in by_id.values():
            for down in script._versioned_down_revisions:
                if down not in by_id:
                    message = "revision {} ({}) follows {}, which no file defines"
                    raise Failure("script", message.format(script.revision, self.relative(script.path), down))
        return list(by_id.values())

    def loaded_revisions(self):
        """Imports all revision files. Whatever they raise is said with file and line."""
        try:
            return list(self.script._load_revisions())
        except (CommandError, RevisionError) as error:
            raise Failure("script", one_line(error))
        except BaseException as error:
            text = describe_error(error)
            raise Failure("script", "{} ({})".format(text, self.place(error)), env_hint(error, text))

    def load(self):
        """Reads all revisions, before env.py has prepared anything for them."""
        try:
            self.script.get_heads()
        except (CommandError, RevisionError) as error:
            raise Failure("script", one_line(error))

    def check_env(self):
        """Finds an env.py that is missing or does not compile, before any tenant is touched."""
        path = str(self.script.env_py_location)
        if not os.path.isfile(path):
            raise Failure("config", "there is no {}".format(self.relative(path)), "`script_location` names its folder")
        try:
            with open(path, "rb") as file:
                codes.check(path, file.read())
        except (SyntaxError, ValueError) as error:
            raise Failure("env", "{} ({})".format(describe_error(error), self.place(error)))

    def relative(self, path):
        return os.path.relpath(str(path), self.folder)

    def place(self, error):
        """Where in the user's own files `error` happened: `file, line N`, as relative as the ini allows."""
        if isinstance(error, SyntaxError) and error.filename:
            return "{}, line {}".format(self.relative(error.filename), error.lineno)
        own = [str(self.script.dir)] + self.locations
        own = [os.path.realpath(folder) + os.sep for folder in own]
        place = "in {}".format(self.relative(self.script.dir))
        for frame, line in traceback.walk_tb(error.__traceback__):
            file = os.path.realpath(frame.f_code.co_filename)
            if any(file.startswith(folder) for folder in own):
                place = "{}, line {}".format(self.relative(file), line)
            elif frame.f_code.co_name == "_load_revisions" and "real_path" in frame.f_locals:
                # Alembic itself fails over a file that loads, but lacks something.
                place = self.relative(frame.f_locals["real_path"])
        return place

    def url_scheme(self):
        """The scheme of the ini's own `sqlalchemy.url`: a hint at the driver that the project was written for."""
        try:
            url = self.as_written.get_main_option("sqlalchemy.url") or ""
        except (configparser.Error, CommandError):
            return None  # It names a variable that only env.py knows, or there is none.
        scheme = url.partition("://")[0] if "://" in url else ""
        # `driver://` is the template's placeholder.
        if not re.fullmatch(r"[a-z][a-z0-9_]*(\+[a-z0-9_]+)?", scheme) or scheme == "driver":
            return None
        return re.sub(r"^postgres(?=\+|$)", "postgresql", scheme)


def describe(request):
    """Everything that can be known before a tenant is touched."""
    project = Project.open(request["ini"], request["section"])
    project.load()
    revisions = []
    # Alembic walks from the heads down; a base comes first here.
    for script in reversed(list(project.script.walk_revisions())):
        with open(script.path, "rb") as file:
            digest = hashlib.sha256(file.read()).hexdigest()
        revisions.append(
            {
                "revision": script.revision,
                "down": list(script._versioned_down_revisions),
                "depends_on": sorted(getattr(script, "_resolved_dependencies", None) or script.dependencies or ()),
                "branch_labels": sorted(getattr(script, "_orig_branch_labels", None) or ()),
                "label": one_line(script.doc),
                "file": project.relative(script.path),
                "sha256": digest,
            }
        )
    heads = sorted(project.script.get_heads())
    return {"versions": versions(), "url_scheme": project.url_scheme(), "heads": heads, "revisions": revisions}


def versions():
    return {
        "python": "{}.{}.{}".format(*sys.version_info[:3]),
        "alembic": alembic.__version__,
        "sqlalchemy": sqlalchemy.__version__,
    }
