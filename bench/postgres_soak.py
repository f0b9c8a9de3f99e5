"""A soak on PostgreSQL with retention: rows, bytes and the WAL kept stay the same while conversations come and go.

Two processes share the store. Conversations stream at one of them, each in a channel of its own. Viewers come, are
disconnected, resume at either process and leave (`bench/plan.py`). Retention removes a conversation some time after its
end, and its channel with it. In the database this leaves dead rows, which autovacuum removes.

In an hour (`--long`) a conversation goes ten minutes after its end, the shortest age that a hub accepts, and
PostgreSQL has its default settings. In a shorter soak these times are shorter in proportion: the age, the pause between
rounds of retention, and those between the rounds of autovacuum and between checkpoints.
"""

import contextlib
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from bench import plan
from bench.common import Options, Row, Served, client_load, late, load_client, number, served
from bench.needs import SERVER, Needs
from bench.postgres import check_postgres
from bench.proc import BenchError, cpu_s, raise_file_limit
from bench.soak import Watch, check_stored, visit_all
from bench.tokens import WIDTH
from proof.chaos.postgres_server import Postgres, running_postgres

_HOUR_S = 3600.0
_DEFAULT_S = 60.0
# conversations at any time, with their length: longer than in the other soak, because retention removes about two
# channels in a second
_LIVE, _LASTS_S = 50, (20.0, 60.0)
_SHORT_LIVE, _SHORT_LASTS_S = 6, (2.0, 6.0)  # of a soak without verdict, so that retention begins in it
_JUDGED_S = 300.0  # a shorter soak has figures but no verdict: the first third ends before retention keeps up
_GROWTH = 1.1
_SAMPLES = 60
_SCHEMA = "tenuto"
# what an hour has: the defaults of retention and of PostgreSQL, with the least value that each accepts
_KEPT_S, _LEAST_KEPT_S = 600, 4
_CHECKPOINT_S, _LEAST_CHECKPOINT_S = 300, 30
_AUTOVACUUM_S, _LEAST_AUTOVACUUM_S = 60, 1


class _Sample(NamedTuple):
    """The state of the database at a time."""

    at_s: float
    rows: int
    size_bytes: int  # of the tables and their indexes
    dead: int  # dead rows, as PostgreSQL estimates them
    wal_bytes: int


def run(options: Options) -> list[Row]:
    seconds = _seconds(options)
    live, lasts_s = (_LIVE, _LASTS_S) if seconds >= _JUDGED_S else (_SHORT_LIVE, _SHORT_LASTS_S)
    return soak(options, seconds=seconds, live=live, lasts_s=lasts_s)


def needs(options: Options) -> Needs:
    return Needs(
        seconds=_seconds(options) + 10,
        files=_LIVE * 10 + 200,
        disk_mb=2_000,
        packages=(*SERVER, "asyncpg"),
        peers={"PostgreSQL": check_postgres},
    )


def _seconds(options: Options) -> float:
    return options.soak_s or (_HOUR_S if options.is_long else _DEFAULT_S)


def soak(options: Options, *, seconds: float, live: int, lasts_s: tuple[float, float]) -> list[Row]:
    """Return the rows. Raises `Void` if a viewer received something wrong, or the store holds it."""
    raise_file_limit(live * 10 + 200)
    planned: dict[str, Any] = {"seconds": seconds, "live": live, "lasts_s": lasts_s}
    conversations = plan.conversations(**planned)
    share = min(1.0, seconds / _HOUR_S)
    kept_s = max(_LEAST_KEPT_S, round(_KEPT_S * share))
    settings = {
        "checkpoint_timeout": f"{max(_LEAST_CHECKPOINT_S, round(_CHECKPOINT_S * share))}s",
        "autovacuum_naptime": f"{max(_LEAST_AUTOVACUUM_S, round(_AUTOVACUUM_S * share))}s",
    }
    with contextlib.ExitStack() as stack:
        postgres = stack.enter_context(running_postgres(options.directory, files={}, **settings))
        here, there = (stack.enter_context(served(postgres.url, "--kept-s", str(kept_s))) for _ in range(2))
        load = stack.enter_context(load_client())
        tables = _Tables(postgres, seconds)
        pids = (postgres.pid, here.child.pid, there.child.pid)
        used_s = [cpu_s(pid) for pid in pids]
        started_s = time.monotonic() + 0.5
        here.child.request("soak", started_s=started_s, planned=planned)
        with Watch(here.child, load) as watch:
            visit = {"port": here.port, "others": [there.port], "started_s": started_s, "planned": planned}
            seen, _ = visit_all(here, load, watch, visit, tables.sample)
            client = client_load({"cpu_s": watch.client_s, "seconds": watch.seconds})
            here.child.request("soaked")
            used_s = [cpu_s(pid) - before_s for pid, before_s in zip(pids, used_s, strict=True)]
            _check_left(there, conversations, started_s, kept_s)
            gone = sum(server.child.request("stats")["retention_messages"] for server in (here, there))
            by_table = tables.rows_by_table()
    if not gone:
        raise BenchError(f"retention removed no conversation in {seconds:g} s, so this soak shows no effect of it")
    text_bytes = sum(conversation.tokens for conversation in conversations) * WIDTH
    return [
        *_rows(tables.samples, seconds, kept_s, by_table),
        Row(
            "  conversations, all shown as written; stored as written or removed",
            f"{len(conversations):,}",
            "all",
            True,
            note=f"{seen['viewers']:,} viewers in {seen['connections']:,} connections, {seen['resumes']:,} resumes at "
            f"either process; retention removed {gone:,} conversations; {text_bytes / 1e6:.1f} MB of text in all; "
            + ", ".join(f"{name} {value}" for name, value in settings.items()),
        ),
        Row(
            "  CPU of PostgreSQL without autovacuum, and of the processes with and without writers",
            ", ".join(f"{each / seconds:.0%}" for each in used_s) + " of a core",
            note=f"{late(watch.lag_ms)}; load client used {client:.0%} of its core",
        ),
    ]


class _Tables:
    """Reads the size of the store's tables, some sixty times in a soak."""

    def __init__(self, postgres: Postgres, seconds: float) -> None:
        self.samples: list[_Sample] = []
        self._postgres = postgres
        self._step_s = seconds / _SAMPLES
        self._names = postgres.sql(
            f"SELECT relname FROM pg_stat_user_tables WHERE schemaname = '{_SCHEMA}' ORDER BY relname"
        ).split()

    def sample(self, now_s: float) -> None:
        """Take a sample if the last one is old enough; `now_s` is the time since the beginning."""
        if self.samples and now_s < self.samples[-1].at_s + self._step_s:
            return
        of_all = f"FROM pg_stat_user_tables WHERE schemaname = '{_SCHEMA}'"
        found = self._postgres.sql(
            f"SELECT {' + '.join(f'(SELECT count(*) FROM {_SCHEMA}.{name})' for name in self._names)},"
            f" (SELECT sum(pg_total_relation_size(relid)) {of_all}), (SELECT sum(n_dead_tup) {of_all}),"
            " (SELECT sum(size) FROM pg_ls_waldir())"
        )
        self.samples.append(_Sample(now_s, *map(int, found.split("|"))))

    def rows_by_table(self) -> str:
        """Return the number of rows of each table, as text."""
        counts = self._postgres.sql(
            "SELECT " + ", ".join(f"(SELECT count(*) FROM {_SCHEMA}.{name})" for name in self._names)
        )
        return ", ".join(f"{name} {count}" for name, count in zip(self._names, counts.split("|"), strict=True))


def _check_left(server: Served, conversations: Sequence[plan.Conversation], started_s: float, kept_s: float) -> None:
    """Check the conversations that retention does not remove yet, at the process that has not written them."""
    for conversation in conversations:
        ended_s = started_s + conversation.starts_s + conversation.tokens / plan.TOKENS_PER_S
        if time.monotonic() < ended_s + kept_s / 2:
            check_stored(server, conversation)


def _rows(samples: Sequence[_Sample], seconds: float, kept_s: float, by_table: str) -> list[Row]:
    """Return the rows about growth: the highest value of the last third against that of the middle one."""
    middle = [one for one in samples if seconds / 3 <= one.at_s < seconds * 2 / 3]
    last = [one for one in samples if one.at_s >= seconds * 2 / 3]
    if not middle or not last:
        raise BenchError(f"{seconds:g} s are too short for a soak")
    is_judged = seconds >= _JUDGED_S
    named = {"rows": ("rows", 1, ""), "size_bytes": ("bytes of tables and indexes", 1e6, " MB")}
    named |= {"wal_bytes": ("WAL kept", 1e6, " MB"), "dead": ("dead rows", 1, "")}
    rows: list[Row] = []
    for name, (what, unit, suffix) in named.items():
        soak_of = "  " if rows else f"soak of {seconds / 60:.3g} min on PostgreSQL, removed after {kept_s:g} s: "
        before, after = (max(getattr(one, name) for one in third) for third in (middle, last))
        has_limit = name != "dead"
        rows.append(
            Row(
                f"{soak_of}{what}, highest in the last third against the middle one",
                f"{after / max(before, 1):.3g} ×",
                f"{_GROWTH} ×" if has_limit and is_judged else "",
                after <= before * _GROWTH if has_limit and is_judged else None,
                note=f"{number(before / unit)}{suffix}, then {number(after / unit)}{suffix}"
                + (f"; at the end {by_table}" if name == "rows" else ""),
                raw=(f"{what}:{suffix} " + " ".join(number(getattr(one, name) / unit) for one in samples),),
            )
        )
    return rows
