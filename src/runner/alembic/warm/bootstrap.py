"""Lets Python import the other files of this folder from the pipe, so that no file system has to hold them."""

import gc
import json
import sys
from importlib.util import spec_from_loader

source = sys.stdin.buffer
sources = json.loads(source.read(int(source.readline())))


class Finder:
    """Finds `herder_warm` and its modules among `sources`."""

    @staticmethod
    def find_spec(name, _path=None, _target=None):
        return spec_from_loader(name, Finder, is_package=name == "herder_warm") if name in sources else None

    @staticmethod
    def create_module(_spec):
        return None

    @staticmethod
    def exec_module(module):
        path = module.__name__.replace(".", "/") + ".py"
        exec(compile(sources[module.__name__], path, "exec"), module.__dict__)


# Imports make much and throw nothing away. `serve` turns it on again.
gc.disable()

# Last: no module of the user's is slowed down by it.
sys.meta_path.append(Finder)

import herder_warm.serve  # noqa: E402, F401 - it serves until the process ends
