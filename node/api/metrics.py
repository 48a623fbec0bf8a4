"""What Prometheus and the service manager may know about this daemon, on loopback only.

The daemon hands in ``Readings``, as often as it likes; totals in it only ever rise, so they are exposed as counters
without being counted twice here. ``/healthz`` says 200 only while the engine makes progress.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, UnknownMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from hansa.node.devices.gpu_metrics import Figure, SeenDevice, gpu_figures
from hansa.proto.units import CURRENCY_DECIMALS, Amount

Counts = Mapping[str, int]
DEVICE_STATES = ("free", "held", "leased", "withdrawn")
PEER_PHASES = ("new", "live", "quiet", "barred")
JOB_PHASES = ("gathering", "running", "succeeded", "failed", "cancelled")


@dataclass(frozen=True, slots=True, kw_only=True)
class Readings:
    """The daemon at one moment. Everything called a total counts from the node's first start, or from this one.

    Attributes:
        devices: how many, by state: ``free``, ``held``, ``leased``.
        leases: how many are live, by role: ``provider``, ``buyer``.
        bids_total: bids of this provider, by outcome: ``sent``, ``won``, ``lost``, ``lapsed``, ``called_off``.
        bids_standing: bids of this provider that hold devices now.
        adverts: how many stand in this node's book.
        price_program_total: questions to the owner's pricing program, by outcome.
        runs_total: runs on this provider, by outcome: ``succeeded``, ``failed``, ``stopped``.
        jobs: this buyer's jobs, by phase.
        jobs_that_wait: how many of them wait for money.
        vouched_in_total: promised to this provider.
        vouched_out_total: promised by this buyer.
        currency: the unit of account of both.
        engine_events_total: events that the engine has taken.
        egress_bytes_total: what runs have exchanged with hosts outside, both ways together.
        engine_lag_ms: how long the newest event waited.
        peers: how many, by phase.
        drops_total: strikes, drops, refusals and ignored events, by reason.
        seen: every device of this node, as it was seen last.
    """

    devices: Counts = field(default_factory=dict)
    leases: Counts = field(default_factory=dict)
    bids_total: Counts = field(default_factory=dict)
    bids_standing: int = 0
    adverts: int = 0
    price_program_total: Counts = field(default_factory=dict)
    runs_total: Counts = field(default_factory=dict)
    jobs: Counts = field(default_factory=dict)
    jobs_that_wait: int = 0
    vouched_in_total: Amount = 0
    vouched_out_total: Amount = 0
    currency: str = "USD"
    engine_events_total: int = 0
    egress_bytes_total: int = 0
    engine_lag_ms: float = 0.0
    peers: Counts = field(default_factory=dict)
    drops_total: Counts = field(default_factory=dict)
    seen: tuple[SeenDevice, ...] = ()


class _Exposition(Collector):
    """The readings in Prometheus' own form, made when they are asked for."""

    def __init__(self) -> None:
        self.readings = Readings()

    def collect(self) -> Iterator[Metric]:
        now = self.readings
        yield _gauge("hansa_devices", "Devices that this node lends.", "state", _all_of(DEVICE_STATES, now.devices))
        yield _gauge("hansa_leases", "Live leases.", "role", now.leases)
        yield _counter("hansa_bids", "Bids of this provider.", "outcome", now.bids_total)
        yield GaugeMetricFamily("hansa_bids_standing", "Bids that hold devices now.", value=now.bids_standing)
        yield GaugeMetricFamily("hansa_book_adverts", "Adverts in this node's book.", value=now.adverts)
        words = "Questions to the owner's pricing program."
        yield _counter("hansa_price_program", words, "outcome", now.price_program_total)
        yield _counter("hansa_runs", "Runs on this provider.", "outcome", now.runs_total)
        yield _gauge("hansa_jobs", "Jobs of this buyer.", "phase", _all_of(JOB_PHASES, now.jobs))
        yield GaugeMetricFamily("hansa_jobs_waiting_for_money", "Jobs that need a top-up.", value=now.jobs_that_wait)
        vouched = CounterMetricFamily(
            "hansa_vouched", "Money promised in vouchers, in the currency.", labels=["direction", "currency"]
        )
        # Prometheus has no numbers but floats; nothing reads money back from here.
        vouched.add_metric(["in", now.currency], now.vouched_in_total / 10**CURRENCY_DECIMALS)
        vouched.add_metric(["out", now.currency], now.vouched_out_total / 10**CURRENCY_DECIMALS)
        yield vouched
        yield CounterMetricFamily("hansa_engine_events", "Events taken by the engine.", value=now.engine_events_total)
        yield CounterMetricFamily("hansa_egress_bytes", "Bytes between runs and hosts.", value=now.egress_bytes_total)
        lag_s = now.engine_lag_ms / 1000
        yield GaugeMetricFamily("hansa_engine_lag_seconds", "How long the newest event waited.", value=lag_s)
        yield _gauge("hansa_peers", "Peers that this node knows.", "phase", _all_of(PEER_PHASES, now.peers))
        yield _counter("hansa_drops", "Strikes, drops, refusals and ignored events.", "reason", now.drops_total)
        for figure in gpu_figures(now.seen):
            yield _family(figure)


def _all_of(words: Sequence[str], counts: Counts) -> Counts:
    """A figure for each of these words: one that vanishes at 0 sets no alarm off."""
    return {word: counts.get(word, 0) for word in words} | dict(counts)


def _gauge(name: str, words: str, label: str, counts: Counts) -> Metric:
    family = GaugeMetricFamily(name, words, labels=[label])
    for value, count in sorted(counts.items()):
        family.add_metric([value], count)
    return family


def _counter(name: str, words: str, label: str, counts: Counts) -> Metric:
    family = CounterMetricFamily(name, words, labels=[label])
    for value, count in sorted(counts.items()):
        family.add_metric([value], count)
    return family


def _family(figure: Figure) -> Metric:
    # The exporter's counters carry no "_total", which this library would add to one: here they are of unknown type.
    kind = UnknownMetricFamily if figure.counts else GaugeMetricFamily
    family = kind(figure.name, figure.words, labels=figure.labels)
    for labels, value in figure.values:
        family.add_metric(labels, value)
    return family


class Metrics:
    """The newest readings and the text that Prometheus scrapes."""

    def __init__(self, *more: Collector) -> None:
        """Start with nothing counted; ``more`` are counted elsewhere and shown here."""
        self._exposition = _Exposition()
        self._registry = CollectorRegistry(auto_describe=False)
        for collector in (self._exposition, *more):
            self._registry.register(collector)
        ProcessCollector(registry=self._registry)

    def update(self, readings: Readings) -> None:
        """Replace what is exposed."""
        self._exposition.readings = readings

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self._registry)


def build_metrics_app(metrics: Metrics, unhealthy: Callable[[], str | None]) -> Starlette:
    """The application for ``hansa.node.api.http_server.serve_loopback``.

    Args:
        metrics: what ``/metrics`` shows.
        unhealthy: why the engine makes no progress, in words, or nothing while it does.
    """

    async def show(_request: Request) -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def health(_request: Request) -> Response:
        reason = unhealthy()
        return PlainTextResponse("ok\n") if reason is None else PlainTextResponse(reason + "\n", status_code=503)

    # A web page somewhere can point its own name at 127.0.0.1 and have a visitor's browser read what is here. Its
    # requests carry its name as their host.
    guard = Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
    return Starlette(routes=[Route("/metrics", show), Route("/healthz", health)], middleware=[guard])
