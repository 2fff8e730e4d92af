"""Makes vLLM 0.32.0 keep async scheduling on a CPU, for whoever has this directory in PYTHONPATH (`serve.sh --async`).

vLLM schedules the next step while one runs, by default and on every GPU, but its CPU platform turns that off. Here it is
turned on again behind the platform's back, and the CUDA streams and events that the model runner then wants are replaced by
ones that do nothing: on a CPU each tensor is there when the call that makes it returns. Scheduler, engine loop, block pool
and events are vLLM's own.
"""

import contextlib
import importlib.abc
import importlib.machinery
import sys


class AfterImport(importlib.abc.MetaPathFinder):
    """Calls a function with a module when that has been imported."""

    def __init__(self, name, then):
        self.name, self.then = name, then

    def find_spec(self, name, path, target=None):
        if name != self.name:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            self.then(module)

        spec.loader.exec_module = exec_module
        return spec


def keep_async_scheduling(module):
    original = module.CpuPlatform.check_and_update_config

    def check_and_update_config(vllm_config):
        original(vllm_config)
        vllm_config.scheduler_config.async_scheduling = True

    module.CpuPlatform.check_and_update_config = staticmethod(check_and_update_config)


def replace_streams(module):
    class Nothing:
        """A stream or an event with nothing to wait for."""

        device = module.torch.device("cpu")

        def __init__(self, *args, **kwargs):
            pass

        def nothing(self, *args, **kwargs):
            pass

        record = synchronize = wait = wait_stream = wait_event = nothing

    cuda = module.torch.cuda
    cuda.Event = module.torch.Event = cuda.Stream = Nothing
    cuda.current_stream = Nothing
    cuda.stream = lambda stream: contextlib.nullcontext()


sys.meta_path[:0] = [
    AfterImport("vllm.platforms.cpu", keep_async_scheduling),
    AfterImport("vllm.v1.worker.cpu_model_runner", replace_streams),
]
