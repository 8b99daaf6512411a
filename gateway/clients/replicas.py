"""The replicas of one service: which there are, which of them answer, and whose turn it is.

A name is resolved again every `resolve_interval_s`, and when a replica fails. A replica is used once its health says
SERVING; one that fails a call is taken out and asked for its health until it says so again. A request gets the replica
with the fewest open requests of this gateway; it stays there, since sequences and matcher states are the replica's own.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, Generic, Protocol, TypeVar

import grpc
import grpc.aio
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.clients.peer import Peer
from services.rpckit.addresses import Lookup, look_up, resolve
from services.rpckit.client_tls import ClientTls
from services.rpckit.status import NotReady, ServiceError

_HEALTH_TIMEOUT_S: Final = 2.0
_PROBE_INTERVAL_S: Final = 0.25
_MIN_RESOLVE_INTERVAL_S: Final = 1.0

_log = structlog.get_logger()


class Client(Protocol):
    """What calls one replica."""

    peer: Peer

    async def close(self) -> None:
        """Disconnect."""


ClientT = TypeVar("ClientT", bound=Client)


class Replica(Generic[ClientT]):
    """One address of a service, and what this gateway knows of it."""

    def __init__(self, client: ClientT) -> None:
        self.client = client
        self.address = client.peer.address
        self.num_open = 0
        """Requests of this gateway that are there now."""
        self.num_picked = 0
        self.is_serving = False
        self.is_listed = True
        self.reason: ServiceError = client.peer.away("cannot be reached; try again, or see whether it runs")
        self.probing: asyncio.Task[None] | None = None

    @contextmanager
    def request(self) -> Iterator[ClientT]:
        """Count a request while it is there."""
        self.begin()
        try:
            yield self.client
        finally:
            self.end()

    def begin(self) -> None:
        """Count a request."""
        self.num_open += 1
        self.num_picked += 1

    def end(self) -> None:
        """Count it no more."""
        self.num_open -= 1

    @property
    def is_connected(self) -> bool:
        """Whether a call can be sent at once; if not, connecting starts."""
        return self.client.peer.channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.READY


class Standing(Protocol):
    """What a choice is made by."""

    num_open: int
    num_picked: int
    is_serving: bool

    @property
    def is_connected(self) -> bool:
        """Whether a call can be sent at once."""


StandingT = TypeVar("StandingT", bound=Standing)


def least_loaded(replicas: Sequence[StandingT]) -> StandingT | None:
    """Return the replica with the fewest open requests, of equals the one picked least; None where none serves.

    One that serves but is not connected at the moment is taken only where no other is.
    """
    serving = [replica for replica in replicas if replica.is_serving]
    serving = [replica for replica in serving if replica.is_connected] or serving
    # A random last word, or all gateways would begin with the same one.
    return min(serving, key=lambda one: (one.num_open, one.num_picked, random.random()), default=None)


class Replicas(Generic[ClientT]):
    """All replicas of one service."""

    def __init__(
        self,
        name: str,
        addresses: str,
        make_client: Callable[[Peer], ClientT],
        *,
        resolve_interval_s: float,
        tls: ClientTls | None = None,
        lookup: Lookup = look_up,
    ) -> None:
        """Connect when first asked for one. `name` and `addresses` are as in the settings."""
        self.name = name
        self._addresses = addresses
        self._make_client = make_client
        self._resolve_interval_s = resolve_interval_s
        self._tls = tls
        self._lookup = lookup
        self._replicas: dict[str, Replica[ClientT]] = {}
        self._leaving: set[Replica[ClientT]] = set()
        self._changed = asyncio.Event()
        self._resolve_now = asyncio.Event()
        self._resolving: asyncio.Task[None] | None = None
        self._unresolved: NotReady | None = None

    async def close(self) -> None:
        """End all calls and disconnect."""
        replicas = [*self._replicas.values(), *self._leaving]
        tasks = [task for task in (self._resolving, *(replica.probing for replica in replicas)) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(replica.client.close() for replica in replicas))

    async def pick(self, wait_s: float, *, avoid: Collection[str] = ()) -> Replica[ClientT]:
        """Return the replica for a request, none of the addresses `avoid`; waits where none serves at the moment.

        Raises:
            NotReady: none serves within `wait_s`.
        """
        if self._resolving is None:
            self._resolving = asyncio.ensure_future(self._keep_resolving())
        until = time.monotonic() + wait_s
        while True:
            self._changed.clear()
            candidates = [replica for replica in self._replicas.values() if replica.address not in avoid]
            if (best := least_loaded(candidates)) is not None:
                return best
            try:
                await asyncio.wait_for(self._changed.wait(), max(until - time.monotonic(), 0))
            except TimeoutError:
                raise self._why(candidates) from None

    def has_other(self, avoid: Collection[str]) -> bool:
        """Whether one serves that is not among these addresses."""
        return any(one.is_serving and one.address not in avoid for one in self._replicas.values())

    def suspect(self, replica: Replica[ClientT], error: ServiceError) -> None:
        """Take a replica out that failed a call, until its health is well; look for new ones, too."""
        replica.is_serving = False
        replica.reason = error
        self._probe(replica)
        self._resolve_now.set()

    def _why(self, candidates: Sequence[Replica[ClientT]]) -> ServiceError:
        if not self._replicas:
            return self._unresolved or NotReady(
                f"the {self.name} service at {self._addresses} has no address yet; try again", service=self.name
            )
        return candidates[0].reason if candidates else next(iter(self._replicas.values())).reason

    async def _keep_resolving(self) -> None:
        while True:
            self._resolve_now.clear()
            try:
                await self._take(await resolve(self._addresses, self._lookup))
                self._unresolved = None
            except OSError as error:
                # Those known before are kept: a resolver that fails says nothing about them.
                if self._unresolved is None:
                    _log.warning(
                        "a name cannot be resolved", peer=self.name, addresses=self._addresses, error=str(error)
                    )
                self._unresolved = NotReady(
                    f"the {self.name} service's address {self._addresses} cannot be resolved: {error.strerror}",
                    service=self.name,
                    address=self._addresses,
                )
            await asyncio.sleep(min(_MIN_RESOLVE_INTERVAL_S, self._resolve_interval_s))
            with suppress(TimeoutError):
                await asyncio.wait_for(self._resolve_now.wait(), self._resolve_interval_s)

    async def _take(self, addresses: Mapping[str, str | None]) -> None:
        """Have a replica for each address (see `resolve`); those that are listed no more finish what they have."""
        # First: those that leave now get an interval to free the sequences of their last requests.
        for replica in [replica for replica in self._leaving if replica.num_open == 0]:
            self._leaving.discard(replica)
            await replica.client.close()
        for address in [address for address in self._replicas if address not in addresses]:
            _log.info("replica gone", peer=self.name, address=address)
            replica = self._replicas.pop(address)
            replica.is_listed = False
            self._leaving.add(replica)
        for address, server_name in addresses.items():
            if address not in self._replicas:
                peer = Peer(self.name, address, self._tls, server_name=server_name)
                self._replicas[address] = Replica(self._make_client(peer))
                self._probe(self._replicas[address])

    def _probe(self, replica: Replica[ClientT]) -> None:
        if replica.is_listed and (replica.probing is None or replica.probing.done()):
            replica.probing = asyncio.ensure_future(self._wait_until_serving(replica))

    async def _wait_until_serving(self, replica: Replica[ClientT]) -> None:
        health: Any = health_pb2_grpc.HealthStub(replica.client.peer.channel)  # its types know no methods
        while replica.is_listed:
            try:
                answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=_HEALTH_TIMEOUT_S)
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    break
                replica.reason = replica.client.peer.away("is not ready: it loads or drains; try again")
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                    break  # no health service, but it answers
                replica.reason = replica.client.peer.translate(error)
            await asyncio.sleep(_PROBE_INTERVAL_S)
        replica.is_serving = replica.is_listed
        # As if it had been here all the time: one that is new is no place for all requests of a while.
        others = (other.num_picked for other in self._replicas.values() if other.is_serving and other is not replica)
        replica.num_picked = max(replica.num_picked, min(others, default=0))
        self._changed.set()
