"""`bench gpu-util -- COMMAND`: somebody's own training script, unchanged, watched from inside and outside.

Nothing of fastload that needs torch is imported before the command has started: it should not wait for us.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.outputs import Outputs
from fastload.errors import ConfigError, printable

if TYPE_CHECKING:
    import torch

    from fastload.profiling.loops import Measured
    from fastload.profiling.report import Report
    from fastload.profiling.system import SystemMeter

HOOK = Path(__file__).parents[1] / "fastload" / "profiling" / "hook"
FOLDER_VARIABLE = "FASTLOAD_WATCH_FOLDER"
SECONDS_BETWEEN_LOOKS = 0.25
# Passed on, whoever sends them: Slurm gives notice of a job's end with USR1.
PASSED_ON = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}


def watch_and_say(words: Sequence[str], **files: Path | None) -> int:
    """Watch a command, say on standard error how its loops did, and write what was asked for.

    Args:
        words: the command.
        files: of Outputs.

    Returns:
        The command's exit code.

    Raises:
        ConfigError: as watch and Outputs.
    """
    outputs = Outputs(**files)
    outputs.check()
    report, code, failures = watch(words)
    from fastload.profiling.terminal import Terminal, say

    console, wrong = Terminal(stderr=True), [f"Mind: the watching had trouble: {failure}" for failure in failures]
    with suppress(OSError):  # nobody reads standard error any more: the exit code is still the script's
        try:
            if report is not None:
                outputs.write(report.as_dict(), console)
        except ConfigError as e:
            wrong.append(f"ConfigError: {e}")
            code = code or 2  # what the script said comes first
        for sentence in wrong:
            console.print(sentence, markup=False, highlight=False, soft_wrap=True)
        if report is not None:
            say(report.as_dict(), console)
    return code


def watch(words: Sequence[str]) -> tuple[Report | None, int, tuple[str, ...]]:
    """Run a command with the hook in all its Python processes, and wait for its end.

    Its input, output and signals are its own. What comes as a signal to this process is passed on to it.

    Returns:
        The report (None where it could not be made), the command's exit code (128 and the signal's number where one
        ended it), and what went wrong in the watching.

    Raises:
        ConfigError: there is no such command, or it may not be run.
    """
    folder = Path(tempfile.mkdtemp(prefix="fastload-watch-"))
    try:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {*PASSED_ON, signal.SIGCHLD})
        try:
            process = _start(words, folder, before)
            outside = Outside(process.pid, folder)
            _wait(process, outside)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        report, failures = outside.report()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    code = process.returncode
    return report, 128 - code if code < 0 else code, failures


def _start(words: Sequence[str], folder: Path, mask: set[Any]) -> subprocess.Popen[bytes]:
    paths = [str(HOOK), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, FOLDER_VARIABLE: str(folder), "PYTHONPATH": os.pathsep.join(paths)}

    def unblock() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    try:
        return subprocess.Popen(list(words), env=environment, preexec_fn=unblock)  # no threads yet
    except OSError as e:
        raise ConfigError(
            f"{printable(words[0])} cannot be run ({e.strerror}); write the command as in a shell: "
            "bench gpu-util -- python train.py"
        ) from None


def _wait(process: subprocess.Popen[bytes], outside: Outside) -> None:
    """Wait for a process, pass signals on, and look at it now and then."""
    while process.poll() is None:
        came = signal.sigtimedwait({*PASSED_ON, signal.SIGCHLD}, SECONDS_BETWEEN_LOOKS)
        # What a terminal sends (Ctrl-C) goes to its whole group, the command too: its code is above 0.
        if came is not None and came.si_signo != signal.SIGCHLD and came.si_code <= 0:
            process.send_signal(came.si_signo)
        outside.look()
    while signal.sigtimedwait({*PASSED_ON, signal.SIGCHLD}, 0) is not None:
        pass  # a second Ctrl-C: the report is still wanted


class Outside:
    """What can be seen of a command from outside: its processes, and the driver's samples of its GPUs.

    Args:
        pid: of the command.
        folder: where its processes write.
    """

    def __init__(self, pid: int, folder: Path) -> None:
        self._folder = folder
        self._pid = pid
        # By process: that of the command from its start, those of ranks from their first step.
        self._systems: dict[int, SystemMeter] = {}
        self._nvml: dict[int, Any] = {}
        self._written: dict[Path, int] = {}  # when files of processes whose GPU is not known had been written
        self._gpus: dict[int, str | None] = {}  # of each rank; None until it has anything on one
        self._next = 0.0
        self._failure: str | None = None

    def look(self) -> None:
        """Look where the last look is long enough ago; what goes wrong here does not stop the command."""
        if self._failure is not None or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + SECONDS_BETWEEN_LOOKS
        try:
            if self._pid not in self._systems:
                self._begin(self._pid, _only_gpu())
            self._find_ranks()
            for system in self._systems.values():
                system.tick()
            for nvml in self._nvml.values():
                nvml.drain()
        except Exception as e:
            self._failure = f"{type(e).__name__}: {e}"

    def report(self) -> tuple[Report | None, tuple[str, ...]]:
        """Return the report, None where it cannot be made, and what went wrong in the watching."""
        try:
            return self._report()
        except Exception as e:  # the command's own exit code still has to be passed on
            return None, (printable(f"{type(e).__name__}: {e}"),)

    def _report(self) -> tuple[Report, tuple[str, ...]]:
        from fastload.profiling.hook.records import make_report, read

        found = read(self._folder)
        for process in found.processes:
            if process["pid"] in self._systems:
                main = max(process["loops"], key=lambda loop: loop["totals"]["seconds"])
                self._systems[process["pid"]].num_workers = main["num_workers"]
        measured = {process["pid"]: self._measured(process["pid"]) for process in found.processes}
        failures = [*found.failures, *filter(None, [self._failure])]
        return make_report(found, measured, self._measured(self._pid)), tuple(failures)

    def _find_ranks(self) -> None:
        from fastload.profiling.hook.records import read

        if not self._has_news():
            return
        for process in read(self._folder).processes:
            pid, gpu = process["pid"], process["gpu_uuid"]
            # The command's own process is looked at anew, too: what came before its first step is no part of a loop.
            if pid not in self._gpus:
                self._begin(pid, gpu)
            elif gpu is not None and self._gpus[pid] is None:  # its first loop ran before anything was on a GPU
                self._sample(pid, gpu)
            self._gpus[pid] = gpu

    def _has_news(self) -> bool:
        """Tell whether a process has written its first loop, or again while its GPU was not known."""
        written = {}
        for file in self._folder.glob("loops-*.json"):
            if self._gpus.get(int(file.stem.partition("-")[2])) is None:
                written[file] = file.stat().st_mtime_ns
        before, self._written = self._written, written
        return any(before.get(file) != at for file, at in written.items())

    def _begin(self, pid: int, gpu: torch.device | str | None) -> None:
        from fastload.profiling.system import SystemMeter

        self._systems[pid] = SystemMeter(pid=pid)
        if gpu is not None:
            self._sample(pid, gpu)

    def _sample(self, pid: int, gpu: torch.device | str) -> None:
        from fastload.profiling.nvml import NvmlSamples

        self._nvml[pid] = NvmlSamples(gpu)

    def _measured(self, pid: int) -> Measured:
        from fastload.profiling.loops import Measured

        system, nvml = self._systems.get(pid), self._nvml.get(pid)
        if system is None:
            return Measured()
        return Measured(
            system=system.result(), starved_share=system.starved_share, nvml=None if nvml is None else nvml.result(),
            nvml_series=() if nvml is None else nvml.series,
        )  # fmt: skip


def _only_gpu() -> torch.device | None:
    """Return this machine's GPU; None where it has several: which of them a command will use is not known yet."""
    import torch

    return torch.device("cuda", 0) if torch.cuda.device_count() == 1 else None
