"""An authority and the certificates it signs, made with the openssl command when a test asks for them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path


class Authority:
    """A certificate authority of one test's own. `file`: what sslrootcert names."""

    def __init__(self, directory: Path) -> None:
        assert shutil.which("openssl"), "openssl is not on PATH: install it (Debian's package is openssl)"
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.file = directory / "ca.crt"
        self._run(
            "req",
            "-x509",
            *self._key("ca.key"),
            "-out",
            "ca.crt",
            "-days",
            "2",
            "-subj",
            "/CN=test authority",
        )

    def certificate(self, name: str, host: str, *, days: int = 2) -> tuple[Path, Path]:
        """(certificate, key) for this host name; days may be negative: expired."""
        (self.directory / f"{name}.ext").write_text(f"subjectAltName = DNS:{host}\n")
        self._run("req", *self._key(f"{name}.key"), "-out", f"{name}.csr", "-subj", f"/CN={host}")
        self._run(
            *("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial"),
            *("-days", str(days), "-extfile", f"{name}.ext", "-out", f"{name}.crt"),
        )
        return self.directory / f"{name}.crt", self.directory / f"{name}.key"

    def _key(self, name: str) -> tuple[str, ...]:
        return ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", name)

    def _run(self, *arguments: str) -> None:
        done = subprocess.run(
            ["openssl", *arguments],
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
