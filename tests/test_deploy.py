"""The files of `deploy/`, the variables of `tenuto serve`, and `tenuto health`.

Layer: tests.

Each file is checked by the program that reads it, the Caddyfile as the text of the page, with which
`test_servers_on_postgres` runs a Caddy. `scripts/test_package` checks the Dockerfile and the files for
Kubernetes, whose checkers are no dependency of the tests; `scripts/test_image` builds and runs the image.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from proof.chaos.engines import settings_of_the_docs as nginx_of_the_docs
from proof.chaos.processes import free_port
from tenuto.cli.main import main
from tests.caddy import settings_of_the_docs as caddy_of_the_docs
from tests.certificates import make_certificate
from tests.nginx import needs_nginx
from tests.processes import Process, listening

DEPLOY = Path(__file__).parents[1] / "deploy"
needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")


def ran(*command: str | Path) -> str:
    """Return the output of a command. Raises AssertionError with it if the command fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={"PATH": "/usr/sbin:/usr/bin"})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def lines_of(text: str) -> list[str]:
    """Return the lines of a configuration that are no comment, without their indentation."""
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def test_proxies_have_the_settings_of_the_page() -> None:
    whole, _, _ = nginx_of_the_docs()
    text = (DEPLOY / "nginx.conf").read_text()
    alone = re.sub(r"(?s) *upstream chat \{.*?\}\n", "", text).replace("http://chat;", "http://127.0.0.1:8000;")
    assert lines_of(alone) == lines_of(whole)
    of_compose = (DEPLOY / "nginx.compose.conf").read_text()
    assert lines_of(of_compose) == lines_of(text.replace("server 127.0.0.1:8000 ", "server tenuto:8000 "))
    of_page = caddy_of_the_docs().replace("10.0.0.1:8000 10.0.0.2:8000", "127.0.0.1:8000")
    assert lines_of((DEPLOY / "Caddyfile").read_text()) == lines_of(of_page)


@needs_nginx
def test_nginx_accepts_its_file(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    text = (DEPLOY / "nginx.conf").read_text().replace("/etc/ssl/chat.pem", str(certificate))
    text = f"pid {tmp_path}/pid;\n" + text.replace("/etc/ssl/chat.key", f"{tmp_path}/key.pem")
    (tmp_path / "nginx.conf").write_text(text)
    assert "test is successful" in ran("nginx", "-t", "-c", tmp_path / "nginx.conf", "-e", tmp_path / "log")


@needs_systemd
def test_systemd_accepts_its_unit_and_finds_it_hardened(tmp_path: Path) -> None:
    unit = tmp_path / "tenuto.service"
    unit.write_text((DEPLOY / "tenuto.service").read_text().replace("/opt/tenuto/bin/tenuto serve", "/bin/true"))
    assert ran("systemd-analyze", "verify", unit) == ""
    report = ran("systemd-analyze", "security", "--offline=true", unit)
    (found,) = re.findall(r"exposure level for tenuto.service: ([\d.]+)", report)
    assert float(found) <= 1.5  # of 10


def test_container_without_a_verifier_says_which_variables_to_set() -> None:
    misspelt = {f"TENUTO_{one}": "x" for one in ("VISITOR", "JWT_SECRET", "TOKEN", "SERVICE_HOST", "BACKUP_PATH")}
    done = CliRunner().invoke(main, ["serve"], env={"TENUTO_HOST": "0.0.0.0", **misspelt})
    *warnings, error = done.stderr.splitlines()
    assert (done.exit_code, "TENUTO_VISITORS=1" in error, "TENUTO_JWT_SECRET_FILE" in error) == (1, True, True)
    assert [one.partition(" is no option and has no effect: ")[::2] for one in warnings] == [
        ("TENUTO_JWT_SECRET", "write its value to a file, and name that file in TENUTO_JWT_SECRET_FILE"),
        ("TENUTO_VISITOR", "rename it to TENUTO_VISITORS"),
    ]
    assert "is no option" not in CliRunner().invoke(main, ["serve", "--app", "none:none"], env=misspelt).stderr


@pytest.mark.parametrize("output", [">/dev/full 2>&1", ">&- 2>&-"])
def test_options_come_from_variables_and_health_asks_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    port, store = free_port(), tmp_path / "chat.db"
    for name, value in {"PORT": str(port), "HOST": "0.0.0.0", "STORE": f"sqlite:///{store}", "VISITORS": "1"}.items():
        monkeypatch.setenv(f"TENUTO_{name}", value)
    monkeypatch.setenv("TENUTO_ALLOWED_ORIGINS", "whose warning cannot be written")
    monkeypatch.setenv("TENUTO_ALLOWED_ORIGIN", "https://one.example https://two.example")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # is not asked for this machine
    command = ["-c", f"exec {sys.executable} -m tenuto serve {output}"]
    with listening(Process(command, tmp_path / "log", program="sh"), port):
        healthy = CliRunner().invoke(main, ["health"])
        lost = CliRunner().invoke(main, ["health", "--url", f"http://127.0.0.1:{port}/tenuto"])
    assert (healthy.exit_code, healthy.output) == (0, "ready\n")
    assert (lost.exit_code, "refused the health report: " in lost.output) == (1, True)
    assert store.exists()
    ended = CliRunner().invoke(main, ["health"])
    assert (ended.exit_code, "no server responds at" in ended.output) == (1, True)
