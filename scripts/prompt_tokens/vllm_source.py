"""Runs vLLM's own prompt code from an unpacked wheel, without torch.

vLLM's request models, message parsing, template resolution and tokenize parameters are plain Python; what they import
besides (torch, CUDA, the engine) is not used on the way from a text request to token ids. `install(WHEEL_DIR)` makes
the modules named in REAL importable from the wheel as they stand, and an empty stand-in of every other `vllm.*` module.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from pathlib import Path
from unittest.mock import MagicMock

from pydantic_core import core_schema

REAL = {
    "vllm.entrypoints.generate.base.protocol",
    "vllm.entrypoints.openai.chat_completion.protocol",
    "vllm.entrypoints.openai.completion.protocol",
    "vllm.entrypoints.serve.engine.protocol",
    "vllm.exceptions",
    "vllm.renderers.chat_utils",
    "vllm.renderers.hf",
    "vllm.renderers.inputs.preprocess",
    "vllm.renderers.params",
    "vllm.tokenizers.hf",
    "vllm.utils.collection_utils",
    "vllm.utils.func_utils",
}


class Thing:
    """Stands for a class that is not there: takes anything, and Pydantic takes anything for it."""

    def __init__(self, *args, **kwargs):
        pass

    def __getattr__(self, name):
        return Thing

    def __class_getitem__(cls, item):
        return cls

    @classmethod
    def __get_pydantic_core_schema__(cls, source, handler):
        return core_schema.any_schema()


class Absent(types.ModuleType):
    """A module that is not there: its names are a `Thing` where they look like classes, a number or a mock."""

    __path__: list[str] = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        if self.__name__ == "vllm.renderers":
            for real in ("params", "chat_utils"):
                module = sys.modules.get(f"vllm.renderers.{real}") or importlib.import_module(f"vllm.renderers.{real}")
                if name in vars(module):
                    return vars(module)[name]
        if name.isupper():
            return 10**6  # a limit
        return type(name, (Thing,), {}) if name[:1].isupper() else MagicMock(name=f"{self.__name__}.{name}")


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, root):
        self.root = Path(root)

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in ("vllm", "torch"):
            return None
        if name in REAL:
            file = self.root / Path(*name.split(".")).with_suffix(".py")
            return importlib.util.spec_from_file_location(name, file)
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return Absent(spec.name)

    def exec_module(self, module):
        pass


def install(wheel_dir):
    sys.meta_path.insert(0, Finder(wheel_dir))
