"""A Chromium of this machine, without a window, that opens one page as if it were a phone."""

from __future__ import annotations

import contextlib
import html
import os
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from hetero.errors import DeviceError

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
#: User agent and size alone: it tests the page, and says nothing of a phone's speed.
PHONE = (
    "Mozilla/5.0 (Linux; Android 14; emulated phone) AppleWebKit/537.36 (KHTML, like Gecko) "
    "Chrome/156.0.0.0 Mobile Safari/537.36"
)
FLAGS = (
    "--headless",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # No name resolves: neither the page nor the browser itself gets to the internet.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
    "--window-size=412,915",
    f"--user-agent={PHONE}",
)
WITHOUT_GPU = ("--disable-gpu",)
#: WebGPU by SwiftShader, which is software: right numbers, and no times of any GPU.
SOFTWARE_GPU = (
    "--enable-unsafe-webgpu",
    "--use-webgpu-adapter=swiftshader",
    "--enable-features=Vulkan",
    "--use-vulkan=swiftshader",
    "--ignore-gpu-blocklist",
)
END_S = 5.0
#: A browser with this pipe ends when the other end is closed: none outlives a host that is killed.
LEASH = ("sh", "-c", 'exec "$@" 3<&0 4>&1', "sh")


def find() -> str | None:
    """The path of a Chromium, or None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@dataclass
class Chromium:
    """A running browser; a lifetime is from `open` to `close`."""

    name: str
    program: str
    webgpu: bool = False
    _process: subprocess.Popen[bytes] | None = None
    _folder: TemporaryDirectory[str] | None = None

    @property
    def pid(self) -> int | None:
        """Of a running one."""
        if self._process is None or self._process.poll() is not None:
            return None
        return self._process.pid

    def open(self, url: str) -> None:
        """Start a fresh one on a page, in place of the one before.

        Raises:
            DeviceError: It cannot be started.
        """
        self.close()
        self._folder = TemporaryDirectory(prefix="hetero-chromium-", ignore_cleanup_errors=True)
        # Others can read command lines, and the address holds the token; nobody else reads this.
        first = Path(self._folder.name) / "start.html"
        first.write_text(f'<meta http-equiv="refresh" content="0;url={html.escape(url)}">')
        # Chromium's own sandbox refuses to run as root.
        sandbox = ("--no-sandbox",) if os.geteuid() == 0 else ()
        call = [
            *LEASH,
            self.program,
            "--remote-debugging-pipe",
            *FLAGS,
            *(SOFTWARE_GPU if self.webgpu else WITHOUT_GPU),
            *sandbox,
            f"--user-data-dir={self._folder.name}/profile",
            first.as_uri(),
        ]
        try:
            self._process = subprocess.Popen(
                call,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            raise DeviceError(self.name, f"{self.program} cannot be started ({error})") from error

    def close(self) -> None:
        """End it with all its processes, and remove its profile."""
        if self._process is not None:
            for end in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, end)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(END_S)
                    break
            with contextlib.suppress(ProcessLookupError):  # what its children left
                os.killpg(self._process.pid, signal.SIGKILL)
            if self._process.stdin is not None:
                self._process.stdin.close()
            self._process = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None
