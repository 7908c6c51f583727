"""The parts of the status page as HTML, each by itself."""

from __future__ import annotations

import html
from typing import Any

from enhanced_checkpointing.errors import shortened
from enhanced_checkpointing.observability.recent import CALLS_KEPT, Latency, PastOutage
from enhanced_checkpointing.web.drawings import depth, outage_end, strip
from enhanced_checkpointing.web.view import CALL_SECONDS, Mode, View
from enhanced_checkpointing.web.words import clock, exact, moment, several, size, span

_ROWS = 20
"""How many outages, dead letters, branches and messages are listed."""

_LONGEST = 500
"""Characters that are shown of a thread's id or of an error: each may be as long as its author likes."""

_NOTHING = "–"  # noqa: RUF001  # a dash where there is nothing to say

_ANSWERED = {
    "primary": "database",
    "journaled": "journal",
    "standby": "warm copy",
    "unavailable": "not available",
    "refused": "refused data",
    "cancelled": "cancelled",
    "error": "error",
}


def escape(text: object) -> str:
    """For HTML, and no longer than a person reads."""
    return html.escape(shortened(str(text), _LONGEST))


def sections(view: View) -> dict[str, str]:
    """The inside of every part of the page, by its id."""
    closed = view.mode in (Mode.CLOSED, Mode.OFF)
    return {
        "headline": _headline(view),
        "points": _points(view),
        "figures": "" if closed else _figures(view),
        "depth": "" if closed else _depth(view),
        "outages": _outages(view),
        "calls": _calls(view),
        "refused": _refused(view),
        "branches": _branches(view),
        "messages": _messages(view),
        "clock": f"As of {_time(view.now, clock(view.now))} UTC. Watching for {span(max(0.0, view.now - view.since))}.",
    }


def _headline(view: View) -> str:
    return (
        '<span class="lamp" aria-hidden="true"></span>'
        f"<div><h1>{escape(view.headline.title)}</h1><p>{escape(view.headline.meaning)}</p></div>"
    )


def _points(view: View) -> str:
    if not view.points:
        return ""
    shown = view.points[:_ROWS]
    items = (f"<li><strong>{escape(point.what)}</strong> {escape(point.remedy)}</li>" for point in shown)
    return f'<h2>What to do{_of(len(view.points))}</h2><ul class="points">{"".join(items)}</ul>'


def _figures(view: View) -> str:
    primary, journal = view.health["primary_checkpointer"], view.health["journal"]
    warm, divergences = view.health["fallback_checkpointer"], view.health["divergences"]
    if primary["breaker"] == "open":
        state, since = "Down", f"for {span(primary['outage_seconds'] or 0.0)}"
    else:
        state, since = ("Takes writes", "") if primary["healthy"] else ("Fails", "at the newest probe")
    pool = primary["pool"]
    connections = f"{pool.get('size', 0)} of {pool['max']} connections" if "max" in pool else ""
    waits = f"the oldest for {span(journal['oldest_age_seconds'])}" if journal["pending"] else "nothing waits"
    where = {"durable": "on disk", "memory": "in memory only", "off": "switched off"}[journal["mode"]]
    taken = f"{size(journal['size_bytes'])} of {size(journal['capacity_bytes'])}, {where}"
    letters, frozen = journal["dead_letters"], journal["frozen_threads"]
    figures = (
        _figure(f"Database ({primary['backend']})", state, since, connections, alarming=not primary["healthy"]),
        _figure("In the journal", f"{journal['pending']:,}", waits, taken, meter=_fill(journal)),
        _figure("Warm copies", f"{warm['warm_threads']:,}", "threads, readable in an outage", size(warm["size_bytes"])),
        _figure(
            "Dead letters",
            f"{letters:,}",
            several(frozen, "frozen thread", "frozen threads") if frozen else "no thread is frozen",
            several(divergences["count"], "divergence", "divergences"),
            alarming=bool(letters or frozen),
        ),
    )
    return f'<h2 class="spoken">Figures</h2><dl class="figures">{"".join(figures)}</dl>'


def _figure(name: str, value: str, *notes: str, meter: str = "", alarming: bool = False) -> str:
    told = "".join(f"<small>{escape(note)}</small>" for note in notes if note)
    shown = f"<b{' class=alarming' if alarming else ''}>{escape(value)}</b>"
    return f"<div><dt>{escape(name)}</dt><dd>{shown}{told}{meter}</dd></div>"


def _fill(journal: dict[str, Any]) -> str:
    share = journal["size_bytes"] / journal["capacity_bytes"] if journal["capacity_bytes"] else 0.0
    limits = 'min="0" max="1" high="0.8"'
    return f'<meter {limits} value="{share:.4f}" aria-label="Room taken in the journal">{share:.0%}</meter>'


def _depth(view: View) -> str:
    drawing = depth(view)
    if drawing is None:
        return ""
    return (
        f"<h2>Waiting in the journal <small>at most {drawing.count:,} in the last {drawing.reach}</small></h2>"
        f'<div class="card">{drawing.svg}<p class="scale" aria-hidden="true"><span>{drawing.reach} ago</span>'
        '<span class="key"><i class="outage"></i>outage<i class="draining"></i>draining</span>'
        "<span>now</span></p></div>"
    )


def _outages(view: View) -> str:
    if not view.outages:
        return f'<h2>Outages</h2><p class="empty">None since {_time(view.since, moment(view.since, view.now))} UTC.</p>'
    drawing = strip(view)
    rows = "".join(_outage(outage, view) for outage in view.outages[:_ROWS])
    return (
        f"<h2>Outages <small>{drawing.count:,} in the last {drawing.reach}</small></h2>"
        f'<div class="card">{drawing.svg}<p class="scale" aria-hidden="true"><span>{drawing.reach} ago</span>'
        '<span class="key"><i class="outage"></i>outage<i class="draining"></i>draining<i class="quiet"></i>healthy'
        '<i class="unseen"></i>not watched</span><span>now</span></p></div>'
        + _table(("Began (UTC)", "Length", "Database back", "Journaled", "Written back", "Why"), rows)
    )


def _outage(outage: PastOutage, view: View) -> str:
    length = span(max(0.0, outage_end(outage, view) - outage.started_at))
    journaled, written = f"{outage.journaled:,}", f"{outage.drained:,}"
    if outage.seconds is None:
        written = _NOTHING
        if view.outage_goes_on and outage is view.outages[0]:
            length, journaled = f"{length}, goes on", f"{view.health['journal']['pending']:,} wait"
        else:
            length, journaled = "end not seen", _NOTHING
    return _row(
        ("Began (UTC)", _time(outage.started_at, moment(outage.started_at, view.now))),
        ("Length", length),
        ("Database back", f"after {span(outage.down)}" if outage.down is not None else _NOTHING),
        ("Journaled", journaled),
        ("Written back", written),
        ("Why", f'<span class="why">{escape(outage.reason or _NOTHING)}</span>'),
    )


def _calls(view: View) -> str:
    reach = f"of the last {CALL_SECONDS / 60:.0f} minutes, of each outcome the newest {CALLS_KEPT}"
    heading = f"<h2>Calls <small>{reach}</small></h2>"
    if not view.latencies:
        return f'{heading}<p class="empty">None.</p>'
    rows = "".join(_latency(latency) for latency in view.latencies)
    return heading + _table(("Operation", "Calls", "p50", "p99", "Slowest", "Answered by"), rows)


def _latency(latency: Latency) -> str:
    answered = " ".join(
        f'<span class="outcome {escape(outcome)}">{escape(_ANSWERED.get(outcome, outcome))} {count:,}</span>'
        for outcome, count in latency.outcomes.items()
    )
    return _row(
        ("Operation", f"<code>{escape(latency.operation)}</code>"),
        ("Calls", f"{latency.calls:,}"),
        ("p50", span(latency.median)),
        ("p99", span(latency.p99)),
        ("Slowest", span(latency.slowest)),
        ("Answered by", answered),
    )


def _refused(view: View) -> str:
    if not view.dead_letters:
        return ""
    rows = "".join(
        _row(
            ("Thread", f"<code>{escape(letter['thread_id'])}</code>"),
            ("Operation", f"<code>{escape(letter['operation'])}</code>"),
            ("Journaled (UTC)", _time(letter["journaled_at"], moment(letter["journaled_at"], view.now))),
            ("The database says", f'<span class="why">{escape(letter["error"])}</span>'),
        )
        for letter in view.dead_letters[:_ROWS]
    )
    return f"<h2>Dead letters {_of(len(view.dead_letters))}</h2>" + _table(
        ("Thread", "Operation", "Journaled (UTC)", "The database says"), rows
    )


def _branches(view: View) -> str:
    if not view.branchings:
        return ""
    rows = "".join(
        _row(
            ("Thread", f"<code>{escape(found.thread_id)}</code>"),
            ("Found (UTC)", _time(found.at, moment(found.at, view.now))),
            (
                "Kept",
                "the other branch; the deletion was not carried out"
                if found.deletion
                else f"both; that of this process as <code>{escape(found.kept_as)}</code>",
            ),
        )
        for found in view.branchings[::-1][:_ROWS]
    )
    return f"<h2>Two branches {_of(len(view.branchings))}</h2>" + _table(("Thread", "Found (UTC)", "Kept"), rows)


def _messages(view: View) -> str:
    if not view.messages:
        return ""
    items = "".join(
        f'<li class="{message.level.lower()}"><span>{_time(message.at, moment(message.at, view.now))}</span>'
        f" <b>{escape(message.level.lower())}</b> {escape(message.text)}</li>"
        for message in view.messages[::-1][:_ROWS]
    )
    return f'<h2>Messages <small>UTC</small></h2><ul class="card messages">{items}</ul>'


def _of(count: int) -> str:
    return f"<small>the first {_ROWS} of {count:,}</small>" if count > _ROWS else ""


def _table(names: tuple[str, ...], rows: str) -> str:
    heads = "".join(f'<th scope="col">{name}</th>' for name in names)
    return f'<div class="card"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'


def _row(*cells: tuple[str, str]) -> str:
    """Each cell with its column's name, which a narrow screen shows instead of the head."""
    return "<tr>" + "".join(f'<td data-name="{name}"><span>{html}</span></td>' for name, html in cells) + "</tr>"


def _time(at: float, words: str) -> str:
    return f'<time datetime="{exact(at)}">{escape(words)}</time>'
