"""The common part of the benchmarks: their options, the rows that they return, and the processes that they start."""

import contextlib
import http.client
import json
import statistics
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from bench.proc import CLIENT_CORE, SERVER_CORE, BenchError, Child, cpu_s

CLIENT_LIMIT = 0.95  # share of the load client's core: above it, the client's own time distorts the measurement
USUAL_ROUNDS = 3  # a figure of another number of rounds says so
NAMES = {"sse": "SSE", "websocket": "WebSocket"}  # of the kinds of viewers
# Of the last bytes for each viewer of an answer, for which `drain` looks: of a `message.finish`, or of a whole message.
FINISHED = '"status":"complete"'
TIMEOUT_S = 60.0  # the longest time of a request to the load client


class Void(BenchError):
    """A viewer received something wrong, so no measurement of this run counts."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of a run. Databases are made in `directory`, which must be on a disk for figures about disks."""

    is_quick: bool
    directory: Path
    soak_s: float = 600.0


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    measured: str
    limit: str = ""
    is_met: bool | None = None  # None: the row has no limit
    note: str = ""
    has_failed: bool = False  # there is no figure: it could not be measured, or the run is void

    @classmethod
    def judged(
        cls, what: str, values: Sequence[float], unit: str, limit: float | None = None, *, note: str = "",
        by: Callable[[Sequence[float]], float] = statistics.median, is_least: bool = False,
    ) -> Self:  # fmt: skip
        """Return the row of `values`, whose median, or another value `by` which they count, may be `limit` at most.

        With `is_least` it must be `limit` at least. Without a limit the row has no verdict.
        """
        is_met = None if limit is None else by(values) >= limit if is_least else by(values) <= limit
        return cls(what, spread(values, unit), "" if limit is None else f"{limit:,g} {unit}", is_met, note)


@dataclass(frozen=True)
class Served:
    """The server under test."""

    child: Child
    port: int
    prefix: str = ""  # the path below which the hub is mounted

    @property
    def address(self) -> dict[str, Any]:
        """Return the address for the load client."""
        return {"port": self.port, "prefix": self.prefix}

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Send one HTTP request below `/v1/channels/`. Only the channel's colon in `path` may need quoting."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            headers = {"Content-Type": "application/json"} if body is not None else {}
            data = json.dumps(body) if body is not None else None
            connection.request(method, f"{self.prefix}/v1/channels/{quote(path)}", data, headers)
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        if response.status >= 300:
            raise BenchError(f"{method} {path} got the status {response.status}: {content[:500]!r}")
        return json.loads(content)


@contextlib.contextmanager
def served(
    store: Path | str, *options: str, under: str = "serve", port: int = 0, idle_s: float | None = None
) -> Iterator[Served]:
    """Run the server under test in its own process, on the server's core, with an SQLite file or the URL of a store.

    `under` is `serve` or `granian`, `port` a fixed port, `idle_s` how long idle channels stay in memory; `options` are
    further ones of `bench.server`. Raises `BenchError` if it does not start.
    """
    url = store if isinstance(store, str) else f"sqlite:///{store.absolute()}"
    arguments = [url, "--under", under, "--port", str(port), *options]
    if idle_s is not None:
        arguments += ["--idle-s", str(idle_s)]
    with Child("bench.server", *arguments, core=SERVER_CORE) as child:
        try:
            yield Served(child, **child.read(timeout_s=20))
        except BenchError as error:
            if text := child.log_end():
                error.add_note(f"the server text:\n{text}")
            raise


@contextlib.contextmanager
def kept(options: Options) -> Iterator[Path]:
    """Yield the path of a database file, and remove all its files at the end."""
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        yield Path(directory) / "bench.db"


@contextlib.contextmanager
def load_client() -> Iterator[Child]:
    """Run the load client on its own core."""
    with Child("bench.load", core=CLIENT_CORE) as child:
        yield child


def attempt(what: str, measure: Callable[[], Iterable[Row]]) -> Iterator[Row]:
    """Yield the rows of a measurement. If it fails, the last row has the reason, and other measurements continue."""
    try:
        yield from measure()
    except (BenchError, OSError) as error:
        yield failed(what, error)
    except Exception as error:  # the outer edge: keep the rows of the other measurements
        traceback.print_exc()
        yield failed(what, error)


def failed(what: str, error: Exception) -> Row:
    """Return a row without a figure: the error, and the observations at that time."""
    verdict = "VOID" if isinstance(error, Void) else "not measured"
    text = "\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])])
    return Row(what, verdict, note=text, has_failed=True)


def connect(load: Child, kind: str, channels: Sequence[str], address: Mapping[str, Any], **how: Any) -> None:
    """Attach a viewer of this kind to each of `channels`, which may repeat; `how` are further fields of the request."""
    how |= {"kind": kind, "channels": channels, "timeout_s": TIMEOUT_S}
    load.request("connect", reply_in_s=TIMEOUT_S + 10, **how, **address)


def drain(load: Child, last: str | None = FINISHED) -> dict[str, Any]:
    """Let the load client read all that is sent to its viewers, up to `last` at each of them."""
    drained: dict[str, Any] = load.request("drain", timeout_s=TIMEOUT_S, reply_in_s=TIMEOUT_S + 10, last=last)
    return drained


def capture(
    load: Child, pid: int, produce: Callable[[], dict[str, Any]], *, last: str | None = FINISHED
) -> tuple[dict[str, Any], dict[str, Any], float]:
    """Capture what the viewers receive while `produce` works, and after it up to `last`.

    Return the result of `produce`, that of `drain`, and the CPU time of process `pid`.
    """
    load.request("capture")
    before_s = cpu_s(pid)
    produced = produce()
    drained = drain(load, last)
    return produced, drained, cpu_s(pid) - before_s


def judge(
    load: Child, drained: dict[str, Any], sent: dict[str, Any], address: Mapping[str, Any] | None,
    *, is_steady: bool = True, **how: Any,
) -> dict[str, Any]:  # fmt: skip
    """Return what the viewers received, of which `how` are fields of the request.

    Raises `Void` unless each has exactly the sent text, and the server at `address`, if given, stores it. Raises
    `BenchError` if the load client was too slow for a load that `is_steady`.
    """
    decoded: dict[str, Any] = load.request("decode", reply_in_s=TIMEOUT_S, **how)
    stored_at = {"port": None} if address is None else address
    check(decoded, load.request("compare", sent=sent, reply_in_s=TIMEOUT_S, **stored_at), drained)
    if is_steady:
        client_load(drained)
    return decoded


def check(decoded: dict[str, Any], compared: dict[str, Any], drained: dict[str, Any]) -> None:
    """Raise `Void` unless every viewer received exactly the sent text."""
    if decoded["violations"]:
        what = f"the protocol was violated: {decoded['violations']}, first {decoded['first_violation']}"
    elif compared["wrong"]:
        what = f"{compared['wrong']} wrong of {compared['compared']} views, e.g. {compared['example']}"
    elif drained["ended"]:
        what = f"{drained['ended']} connections were ended by the server"
    else:
        return
    raise void(what, drained)


def void(what: str, drained: dict[str, Any]) -> Void:
    """Return a `Void` with the load at that time, because an overloaded machine is not a lost token."""
    # not a share: a run that fails at once may last only a moment
    return Void(f"{what}; the load client used {drained['cpu_s']:.2f} s of its core in {drained['seconds']:.2f} s")


def client_load(drained: dict[str, Any]) -> float:
    """Return the share of its core that the load client used in a capture. Raises `BenchError` if it was nearly all.

    The share is meaningful only for a steady load.
    """
    load: float = drained["cpu_s"] / drained["seconds"]
    if load > CLIENT_LIMIT:
        raise BenchError(f"the load client used {load:.0%} of its core, so the figure would be that of the load client")
    return load


def producers_us(server: Child, *, channels: Sequence[str], tokens_per_s: float, seconds: float) -> float:
    """Return the CPU time, in µs per token, of the server's producers alone: no text goes to its hub."""
    count = max(1, int(seconds * tokens_per_s))
    before_s = cpu_s(server.pid)
    wanted: dict[str, Any] = {"channels": channels, "count": count, "tokens_per_s": tokens_per_s}
    server.request("produce", is_alone=True, reply_in_s=seconds + 45, **wanted)
    return (cpu_s(server.pid) - before_s) / (count * len(channels)) * 1e6


def spread(values: Sequence[float], unit: str = "") -> str:
    """Return the median and the range of the values as text, and their number unless it is `USUAL_ROUNDS`."""
    median = f"{number(statistics.median(values))} {unit}".rstrip()
    if len(values) == 1:
        return f"{median} (one round)"
    rounds = "" if len(values) == USUAL_ROUNDS else f", {len(values)} rounds"
    return f"{median} ({number(min(values))}–{number(max(values))}{rounds})"


def number(value: float) -> str:
    """Return a number with three significant digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
