"""`checkpointing erase`: what is stored of a thread or a user goes, and a receipt says what remains elsewhere."""

from __future__ import annotations

import asyncio

from rich.text import Text

from enhanced_checkpointing.cli.configuration import Options
from enhanced_checkpointing.cli.output import ExitCode, UsageError, ask, paragraph, plural, print_json, stdout
from enhanced_checkpointing.cli.threads.database import Target, config_for
from enhanced_checkpointing.errors import quoted
from enhanced_checkpointing.manager import EnhancedCheckpointerManager
from enhanced_checkpointing.threads.erasure import ErasureReceipt


def run(
    options: Options, thread_id: str | None, user_id: str | None, *, dry_run: bool, yes: bool, as_json: bool
) -> ExitCode:
    """Erase after a question; fine when nothing is left to be done."""
    if thread_id is None and user_id is None:
        raise UsageError("Name what is to be erased: --thread, --user or both. Nothing was erased.")
    what = " of ".join(
        f"{kind} {quoted(name)}" for kind, name in (("thread", thread_id), ("user", user_id)) if name is not None
    )
    question = f"Erase all that is stored of {what}? This cannot be undone."
    if not (dry_run or yes):
        ask(question, as_json=as_json, otherwise="Nothing was erased.")
    configured = config_for(Target(options))
    config = configured.config.with_overrides(journal="durable", journal_dir=configured.journal_dir, retention="off")

    async def work() -> ErasureReceipt:
        async with EnhancedCheckpointerManager(config) as manager:
            return await manager.erase(thread_id=thread_id, user_id=user_id, dry_run=dry_run)

    receipt = asyncio.run(work())
    if as_json:
        print_json(receipt.as_json())
    else:
        _print(receipt)
    return ExitCode.FINE if receipt.complete else ExitCode.WRONG


def _print(receipt: ErasureReceipt) -> None:
    console = stdout()
    done = "Would be erased" if receipt.dry_run else "Erased"
    counted = ", ".join(f"{count:,} {place}" for place, count in receipt.counts.items() if count)
    threads = plural(len(receipt.thread_ids), "thread")
    paragraph(console, Text(), f"{done}: {threads} in {receipt.database}{': ' * bool(counted)}{counted}.", style="bold")
    for lead, lines, style in (
        ("not yet  ", receipt.pending, "bold red"),
        ("export   ", receipt.exports, "yellow"),
        ("remains  ", receipt.remains, "yellow"),
    ):
        for line in lines:
            paragraph(console, Text(lead, style=style), line)
