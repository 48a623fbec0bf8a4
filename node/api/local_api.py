"""The whole local API of a daemon: every room's routes over that room's desk."""

from typing import TYPE_CHECKING

from starlette.applications import Starlette

from hansa.node.api.desk import NodeDesk
from hansa.node.api.device_desk import DeviceDesk, device_routes
from hansa.node.api.http_api import build_api
from hansa.node.api.http_ledger import LedgerDesk, ledger_routes
from hansa.node.api.http_reputation import ReputationDesk, reputation_routes
from hansa.node.api.http_shell import shell_routes
from hansa.node.api.market_desk import MarketDesk, market_routes
from hansa.node.api.net_desk import NetDesk, net_routes
from hansa.node.api.price_desk import PriceDesk, price_routes
from hansa.node.api.shell_desk import ShellDesk
from hansa.node.api.statement_desk import StatementDesk, statement_routes

if TYPE_CHECKING:
    from hansa.node.daemon.daemon import Daemon


def local_api(daemon: "Daemon") -> Starlette:
    """What the socket in the data directory serves."""
    more = [
        *statement_routes(StatementDesk(daemon)),
        *shell_routes(ShellDesk(daemon)),
        *device_routes(DeviceDesk(daemon)),
        *net_routes(NetDesk(daemon)),
        *price_routes(PriceDesk(daemon)),
        *ledger_routes(LedgerDesk(daemon)),
        *reputation_routes(ReputationDesk(daemon)),
        *market_routes(MarketDesk(daemon)),
    ]
    return build_api(NodeDesk(daemon), max_job_budget=daemon.config.buyer.max_job_budget, more=more)
