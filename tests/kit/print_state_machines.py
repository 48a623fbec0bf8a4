"""Print every machine's table as a diagram: ``python tests/kit/print_state_machines.py > docs/state-machines.md``."""

import sys

from hansa.market import earning_channel, paying_channel, purchase, sale
from hansa.node.network import peers
from hansa.scheduler import capacity, job, mirror, rounds, run

MACHINES = (
    (purchase.TABLE, "The buyer's, for one tender: from the call for bids to the last lease that came of it."),
    (sale.TABLE, "The provider's, for one bid: held devices, a lease, a metered run, and its money."),
    (paying_channel.TABLE, "The buyer's side of a channel: every receipt is checked before a voucher is signed."),
    (earning_channel.TABLE, "The provider's side of a channel: one receipt out at a time."),
    (capacity.TABLE, "The provider's, for the devices of one bid."),
    (job.TABLE, "The buyer's, for one job: its shards, their checkpoints and outputs."),
    (rounds.TABLE, "The buyer's, for the rounds of one training job."),
    (mirror.TABLE, "The provider's, for the copies of other shards' checkpoints that it keeps under one lease."),
    (run.RUN_TABLE, "The provider's, for one run: what outlives a crash of the daemon."),
    (peers.TABLE, "What a node thinks of one peer."),
)

HEAD = """# State machines

Printed from the tables in the code, which are the law: `advance` looks the phase and the event up, and an event that
a table does not know is ignored and counted. Events that change no phase are left out. A test fails when this page is
stale; `python tests/kit/print_state_machines.py > docs/state-machines.md` writes it anew.
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for table, what in MACHINES:
        parts.append(f"## {table.name}\n\n{what}\n\n```mermaid\n{table.as_mermaid()}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    sys.stdout.write(page())
